import assert from "node:assert/strict";
import { test } from "node:test";
import { Megaphone } from "../dist/index.js";
import { tabs } from "../dist/tabs.js";
import { line, serve } from "./server.js";

const SOON = { heartbeatMs: 200, timeoutMs: 2_000 };

async function taken(events, count) {
  const bodies = [];
  for await (const { body } of events) if (bodies.push(body) === count) break;
  return bodies;
}

test("a read goes on behind the last event, takes over, and shows nothing twice", async () => {
  const asked = [];
  const server = await serve(({ query }, response) => {
    asked.push(query);
    response.setHeader("Megaphone-Position", "0");
    if (asked.length === 1) response.end(line("1") + line("2").slice(0, 9));
    else if (asked.length === 2) response.end(line("1") + line("2"));
    else response.write(line("3"));
  });
  const channel = new Megaphone(server.url, SOON).channel("node.a.1");
  assert.deepEqual(await taken(channel, 3), ["1", "2", "3"]);
  assert.equal(asked[0].after, undefined);
  assert.equal(asked[0].takeover, undefined);
  assert.equal(asked[0].heartbeat_ms, "200");
  assert.deepEqual([asked[1].after, asked[1].takeover, asked[1].returning], ["1", "true", "true"]);
  assert.equal(asked[1].reader, asked[0].reader);
  await channel.close();
  server.close();
});

test("a connection that is silent for 2.5 heartbeats is cut", async () => {
  let asked = 0;
  const server = await serve((_, response) => {
    if (++asked === 1) response.flushHeaders();
    else response.write(line("1"));
  });
  const channel = new Megaphone(server.url, SOON).channel("node.a.1");
  assert.deepEqual(await taken(channel, 1), ["1"]);
  await channel.close();
  server.close();
});

test("an error that is cut in its middle says nothing yet", async () => {
  let asked = 0;
  const server = await serve((_, response) => {
    if (++asked > 2) return response.write(line("1"));
    response.writeHead(409, { "Content-Type": "application/json", Connection: "close", ...(asked === 1 && { "Content-Length": 60 }) });
    if (asked === 1) response.write('{"code":"BU', () => response.destroy());
    else response.end('{"code":"BU');
  });
  const channel = new Megaphone(server.url, SOON).channel("node.a.1");
  assert.deepEqual(await taken(channel, 1), ["1"]);
  await channel.close();
  server.close();
});

test("a silent read is given up also where the runtime does not end it", async () => {
  let asked = 0;
  const deaf = async () => new Response(new ReadableStream({ start: (body) => ++asked > 1 && body.enqueue(new TextEncoder().encode(line("1"))) }));
  const channel = new Megaphone("http://broker", { ...SOON, fetch: deaf }).channel("node.a.1");
  assert.deepEqual(await taken(channel, 1), ["1"]);
  await channel.close();
});

test("a gap is told before the next event", async () => {
  const server = await serve(({ query }, response) => {
    response.setHeader("Megaphone-Recovered", String(query.after === "6"));
    response.setHeader("Megaphone-Position", "6");
    response.write(line("7"));
  });
  const mp = new Megaphone(server.url, SOON);
  const silent = mp.channel("node.a.1");
  await assert.rejects(taken(silent, 1), { code: "EVENTS_LOST", name: "EventsLost" });
  assert.deepEqual(await taken(silent, 1), ["7"]);
  await silent.close();
  const seen = [];
  const channel = mp.channel("node.b.1", { onGap: () => seen.push("gap") });
  seen.push(...(await taken(channel, 1)));
  assert.deepEqual(seen, ["gap", "7"]);
  await channel.close();
  server.close();
});

test("events go to all that want them, and are kept for who asks later", async () => {
  const server = await serve((_, response) => response.write(line("1", "a") + line("2", "b") + line("3", "answer") + line("4", "a")));
  const channel = new Megaphone(server.url, SOON).channel("node.a.1");
  const [one, two] = [channel.stream("a"), channel.stream("a")];
  assert.deepEqual(await Promise.all([taken(one, 2), taken(two, 2)]), [["1", "4"], ["1", "4"]]);
  assert.equal(await channel.first("answer"), "3");
  assert.deepEqual(await taken(channel.stream("b"), 1), ["2"]);
  await channel.close();
  server.close();
});

test("waiting for a first event can be aborted, and loses nothing", async () => {
  let response;
  const server = await serve((_, answer) => {
    response = answer;
    answer.flushHeaders();
  });
  const channel = new Megaphone(server.url, SOON).channel("node.a.1");
  const abort = new AbortController();
  const waiting = channel.first("answer", { signal: abort.signal });
  abort.abort();
  await assert.rejects(waiting, { name: "AbortError" });
  const again = channel.first("answer");
  while (!response) await new Promise((resolve) => setTimeout(resolve, 5));
  response.write(line("1", "answer"));
  assert.equal(await again, "1");
  await channel.close();
  server.close();
});

test("a function in place of an address is called again when the channel has gone", async () => {
  const gone = JSON.stringify({ code: "NOT_FOUND", message: "gone" });
  const server = await serve(({ path }, response) => {
    if (path === "/read/node.a.1") response.writeHead(404).end(gone);
    else response.write(line("1"));
  });
  const formers = [];
  const channel = new Megaphone(server.url, SOON).channel(async (former) => {
    formers.push(former?.consumer);
    return { consumer: former ? "node.b.1" : "node.a.1" };
  });
  const states = [];
  channel.onstate = (state) => states.push(state);
  assert.deepEqual(await taken(channel, 1), ["1"]);
  assert.deepEqual(formers, [undefined, "node.a.1"]);
  await channel.close();
  assert.equal(channel.state, "closed");
  assert.ok(states.includes("open"));
  server.close();
});

test("a write is repeated with the same key, and says when it cannot know", async () => {
  const keys = [];
  const server = await serve(({ headers }, response) => {
    keys.push(headers["idempotency-key"]);
    if (keys.length === 1) response.destroy();
    else response.writeHead(201).end('{"status":"OK","eid":"e"}');
  });
  assert.equal(await new Megaphone(server.url, SOON).write("node.a", "s", 1), "e");
  assert.equal(keys.length, 2);
  assert.equal(keys[0], keys[1]);
  server.close();
  const silent = await serve(() => {});
  const write = new Megaphone(silent.url, { timeoutMs: 200 }).write("node.a", "s", 1);
  await assert.rejects(write, { code: "OUTCOME_UNKNOWN" });
  silent.close();
});

test("a stream that no path can name is refused before anything is sent", async () => {
  let asked = 0;
  const server = await serve((_, response) => {
    asked++;
    response.writeHead(201).end('{"status":"OK","eid":"e"}');
  });
  const mp = new Megaphone(server.url, SOON);
  for (const stream of ["", ".", ".."]) await assert.rejects(mp.write("node.a", stream, 1), { code: "BAD_REQUEST", name: "BadRequest" });
  assert.equal(asked, 0);
  for (const stream of ["...", ".a", "/"]) assert.equal(await mp.write("node.a", stream, 1), "e");
  server.close();
});

for (const rest of ["", '{"status":"OK","e'])
  test(`a write whose answer is cut after ${rest.length} characters is repeated`, async () => {
    let asked = 0;
    const server = await serve((_, response) => {
      response.writeHead(201, { "Content-Type": "application/json", Connection: "close" });
      response.end(++asked === 1 ? rest : '{"status":"OK","eid":"e"}');
    });
    assert.equal(await new Megaphone(server.url, SOON).write("node.a", "s", 1), "e");
    server.close();
  });

test("user and password of the URL become a header, and no error has an address", async () => {
  let authorization;
  const server = await serve(({ headers }, response) => {
    ({ authorization } = headers);
    response.writeHead(403).end('{"code":"PERMISSION_DENIED","message":"no"}');
  });
  const url = server.url.replace("//", "//me:p%40ss@");
  await assert.rejects(new Megaphone(url).write("node.secret", "s", 1), ({ code, message }) => {
    assert.equal(code, "PERMISSION_DENIED");
    return !message.includes("secret");
  });
  assert.equal(authorization, "Basic " + btoa("me:p@ss"));
  server.close();
});

test("the channels of a client share one connection", async () => {
  const open = new Map();
  const posts = [];
  const server = await serve(({ method, path, body }, response) => {
    const name = path + open.size;
    open.set(name, response);
    response.on("close", () => open.delete(name));
    if (method === "GET") {
      response.setHeader("Megaphone-Position", "-");
      response.flushHeaders();
      return;
    }
    const asked = JSON.parse(body);
    posts.push(asked);
    for (const channel of asked.channels.keys()) {
      response.write(JSON.stringify({ channel, begun: true, position: "-", recovered: true }) + "\n");
    }
    const last = asked.channels.length - 1;
    response.write(JSON.stringify({ channel: last, ...JSON.parse(line("e" + asked.channels.length)) }) + "\n");
  });
  const mp = new Megaphone(server.url, SOON);
  const channels = ["node.a.1", "node.b.1", "node.c.1"].map((address) => mp.channel(address));
  const events = channels.map((channel) => channel[Symbol.asyncIterator]());
  assert.equal((await events[2].next()).value.body, "e3");
  assert.deepEqual(posts[0].channels.map(({ address }) => address), ["node.a.1", "node.b.1", "node.c.1"]);
  assert.equal(open.size, 1);
  const late = mp.channel("node.d.1")[Symbol.asyncIterator]();
  assert.equal((await late.next()).value.body, "e4");
  assert.equal(posts.at(-1).channels.length, 4);
  assert.equal(posts.at(-1).takeover, true);
  while (open.size > 1) await new Promise((resolve) => setTimeout(resolve, 5));
  await Promise.all(channels.map((channel) => channel.close()));
  server.close();
  await late.return();
});

test("of many channels that share a connection, one may end for good, and one for a moment", async () => {
  let isFirst = true;
  const server = await serve(({ method, path, body }, response) => {
    const tell = (channel, told) => response.write(JSON.stringify({ channel, ...told }) + "\n");
    if (method === "GET") {
      response.flushHeaders();
      if (path === "/read/node.busy.1") response.write(line("2"));
      return;
    }
    for (const [at, { address }] of JSON.parse(body).channels.entries()) {
      if (address === "node.gone.1") tell(at, { done: true, code: "NOT_FOUND", message: "gone" });
      else if (isFirst && address === "node.busy.1") tell(at, { done: true, code: "A_CODE_OF_TOMORROW" });
      else {
        tell(at, { begun: true, position: "-", recovered: true });
        tell(at, JSON.parse(line(address === "node.a.1" ? "1" : "2")));
      }
    }
    isFirst = false;
  });
  const mp = new Megaphone(server.url, { heartbeatMs: 60_000 });
  const channels = ["node.a.1", "node.gone.1", "node.busy.1"].map((address) => mp.channel(address));
  const [a, gone, busy] = channels.map((channel) => taken(channel, 1));
  await assert.rejects(gone, { code: "NOT_FOUND", name: "ChannelNotFound" });
  assert.deepEqual(await Promise.all([a, busy]), [["1"], ["2"]]);
  await Promise.all(channels.map((channel) => channel.close()));
  server.close();
});

test("a page that comes back reads again at once, if its connection was silent or it waits", async (t) => {
  let asked = 0;
  const server = await serve((_, response) => {
    if (++asked === 1) response.flushHeaders();
    else if (asked === 2) response.writeHead(503, { "Retry-After": "30" }).end("{}");
    else response.write(line("1"));
  });
  const target = new EventTarget(); // stands for the window, which Node has not
  globalThis.addEventListener = target.addEventListener.bind(target);
  globalThis.removeEventListener = target.removeEventListener.bind(target);
  t.after(() => {
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
  });
  const channel = new Megaphone(server.url, { heartbeatMs: 60_000 }).channel("node.a.1");
  const taking = taken(channel, 1);
  const until = async (state) => {
    while (channel.state !== state) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  await until("open");
  target.dispatchEvent(new Event("online")); // the connection is young
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(asked, 1);
  const real = performance.now.bind(performance);
  t.mock.method(performance, "now", () => real() + 61_000);
  target.dispatchEvent(new Event("pageshow"));
  await until("waiting");
  target.dispatchEvent(new Event("online"));
  assert.deepEqual(await taking, ["1"]);
  assert.equal(asked, 3);
  await channel.close();
  server.close();
});

test("a channel that is left before the answer loses nothing for the others of its connection", async () => {
  const asked = [];
  const server = await serve(({ method, query }, response) => {
    asked.push(method === "GET" ? query.after : method);
    if (method === "GET") response.write(line("1"));
  });
  const mp = new Megaphone(server.url, { heartbeatMs: 60_000 });
  const [left, other] = [mp.channel("node.a.1"), mp.channel("node.b.1")];
  const waiting = left[Symbol.asyncIterator]();
  const taking = taken(other, 1);
  while (!asked.length) await new Promise((resolve) => setTimeout(resolve, 5));
  await waiting.return();
  assert.deepEqual(await taking, ["1"]);
  assert.deepEqual(asked, ["POST", "-"]);
  await Promise.all([left.close(), other.close()]);
  server.close();
});

const many = (count, length = 1) => Array.from({ length: count }, (_, at) => line(String(at), "s", "x".repeat(length))).join("");

for (const [what, count, length] of [["1,000 events", 1_000, 1], ["8 MiB of events", 10, 1_000_000]])
  test(`a read pauses while ${what} wait, and goes on behind them`, async () => {
    const asked = [];
    let isOpen = false;
    const server = await serve(({ query }, response) => {
      asked.push(query.after);
      isOpen = true;
      response.on("close", () => (isOpen = false));
      if (asked.length === 1) response.write(many(count, length));
      else response.write(line("last"));
    });
    const channel = new Megaphone(server.url, { heartbeatMs: 60_000 }).channel("node.a.1");
    const events = channel[Symbol.asyncIterator]();
    assert.equal((await events.next()).value.id, "0");
    while (isOpen) await new Promise((resolve) => setTimeout(resolve, 5));
    assert.equal(channel.cursor, undefined);
    for (let at = 1; at < count; at++) assert.equal((await events.next()).value.id, String(at));
    assert.equal(channel.cursor, String(count - 2));
    assert.equal((await events.next()).value.id, "last");
    assert.deepEqual(asked, [undefined, String(count - 1)]);
    await channel.close();
    assert.equal(channel.cursor, "last");
    server.close();
  });

test("one who leaves while the read pauses because so much waits loses nothing", async () => {
  let asked = 0;
  let isOpen = false;
  const server = await serve((_, response) => {
    isOpen = true;
    response.on("close", () => (isOpen = false));
    response.write(++asked === 1 ? many(1_000) : line("last"));
  });
  const channel = new Megaphone(server.url, { heartbeatMs: 60_000 }).channel("node.a.1");
  const events = channel[Symbol.asyncIterator]();
  await events.next();
  while (isOpen) await new Promise((resolve) => setTimeout(resolve, 5));
  await events.return();
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(asked, 1);
  const ids = [];
  for await (const { id } of channel) if (ids.push(id) === 1_000) break;
  assert.deepEqual([ids[0], ids.at(-2), ids.at(-1)], ["1", "999", "last"]);
  await channel.close();
  server.close();
});

test("a function that makes channels is not called for a channel that is closed", async () => {
  let calls = 0;
  let fail;
  const channel = new Megaphone("http://broker").channel(async () => {
    calls++;
    await new Promise((_, reject) => (fail = reject));
  });
  const waiting = taken(channel, 1);
  await channel.close();
  fail(new TypeError("there is no network"));
  assert.deepEqual(await waiting, []);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(calls, 1);
});

test("what the app deals with after its channel has gone concerns no other channel", async () => {
  const gone = JSON.stringify({ code: "NOT_FOUND", message: "gone" });
  let isGone = false;
  const server = await serve(({ path }, response) => {
    if (path === "/read/node.b.1") response.write(line("3"));
    else if (isGone) response.writeHead(404).end(gone);
    else {
      isGone = true;
      response.end(line("1") + line("2"));
    }
  });
  let isMade;
  const channel = new Megaphone(server.url, SOON).channel(async (former) => {
    if (former) await new Promise((resolve) => (isMade = resolve));
    return { consumer: former ? "node.b.1" : "node.a.1" };
  });
  const events = channel[Symbol.asyncIterator]();
  assert.equal((await events.next()).value.id, "1");
  while (!isMade) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal((await events.next()).value.id, "2");
  const next = events.next();
  isMade();
  assert.equal((await next).value.id, "3");
  await channel.close();
  server.close();
});

test("without streams in answers, a channel is read by long polls", async () => {
  const asked = [];
  const server = await serve(({ query }, response) => {
    asked.push([query.after, query.limit, query.wait_ms]);
    if (asked.length === 1) response.end(line("1"));
    else if (asked.length === 2) response.end(line("2") + line("3"));
    else if (asked.length === 3) response.end();
    else if (asked.length === 4) response.end(line("4"));
  });
  const whole = async (...given) => {
    const response = await fetch(...given);
    const text = await response.text();
    return { ok: true, headers: response.headers, body: undefined, text: async () => text };
  };
  const channel = new Megaphone(server.url, { ...SOON, fetch: whole }).channel("node.a.1");
  assert.deepEqual(await taken(channel, 4), ["1", "2", "3", "4"]);
  assert.deepEqual(asked.slice(1), [["1", undefined, "0"], ["3", undefined, "0"], ["3", "1", "200"]]);
  await channel.close();
  server.close();
});

test("if requests of many channels get no answer, and others do, each channel is read for itself", async () => {
  const open = new Set();
  let refused = 0;
  const server = await serve(({ method }, response) => {
    if (method === "POST") {
      refused++;
      return response.destroy();
    }
    response.flushHeaders();
    open.add(response);
    response.on("close", () => open.delete(response));
  });
  const mp = new Megaphone(server.url, { heartbeatMs: 60_000 });
  const channels = ["node.a.1", "node.b.1"].map((address) => mp.channel(address));
  const taking = channels.map((channel) => taken(channel, 1));
  while (refused < 2 || open.size < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.deepEqual([refused, open.size], [2, 2]);
  for (const response of open) response.write(line("1"));
  assert.deepEqual(await Promise.all(taking), [["1"], ["1"]]);
  await Promise.all(channels.map((channel) => channel.close()));
  server.close();
});

test("but if nothing got an answer, they share a connection when the network is back", async () => {
  let failures = 0;
  let together;
  const server = await serve(({ method, body }, response) => {
    if (failures++ < 4) return response.destroy();
    if (method === "GET") response.flushHeaders();
    else {
      together = JSON.parse(body).channels.length;
      for (const channel of Array(together).keys()) response.write(JSON.stringify({ channel, begun: true, position: "-" }) + "\n");
    }
  });
  const mp = new Megaphone(server.url, { heartbeatMs: 60_000 });
  const channels = ["node.a.1", "node.b.1"].map((address) => mp.channel(address));
  for (const channel of channels) void channel.first("a").catch(() => {});
  while (together !== 2) await new Promise((resolve) => setTimeout(resolve, 5));
  await Promise.all(channels.map((channel) => channel.close()));
  server.close();
});

test("one who leaves while dealing with an event holds the others of a read that acknowledges not back", async () => {
  const acknowledged = [];
  const server = await serve(({ path, body }, response) => {
    if (path.startsWith("/ack/")) {
      acknowledged.push(JSON.parse(body).eid);
      response.end('{"acknowledged":1}');
    } else response.write(line("1", "a") + line("2", "b") + line("3", "b"));
  });
  const channel = new Megaphone(server.url, { heartbeatMs: 60_000 }).channel("node.a.1", { ack: "auto" });
  const [left, other] = [channel.stream("a"), channel.stream("b")];
  await left.next();
  await left.return();
  await other.next();
  await other.next();
  while (acknowledged.at(-1) !== "2") await new Promise((resolve) => setTimeout(resolve, 5));
  await channel.close();
  assert.equal(acknowledged.at(-1), "3");
  server.close();
});

test("a read that tabs share cannot acknowledge", async () => {
  const channel = new Megaphone("http://broker").channel("node.a.1", { ack: "auto", share: tabs });
  await assert.rejects(taken(channel, 1), { code: "BAD_REQUEST" });
  await channel.close();
});
