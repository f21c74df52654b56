import assert from "node:assert/strict";
import { test } from "node:test";
import { Megaphone } from "../dist/index.js";
import { serve } from "./server.js";

/** A broker that takes batches, except as a function says. */
async function broker(answer = () => undefined) {
  const batches = [];
  const server = await serve(({ body, headers }, response) => {
    const { channels, messages } = JSON.parse(body);
    const batch = { channels, bodies: messages.map((one) => one.body), key: headers["idempotency-key"] };
    batches.push(batch);
    const eids = messages.map((one) => "id " + JSON.stringify(one.body));
    response.end(JSON.stringify({ failures: [], eids, ...answer(batch, batches.length) }));
  });
  return { batches, ...server };
}

test("events go out in batches, in the order of each channel", async () => {
  const server = await broker();
  const publisher = await new Megaphone(server.url).publisher({ maxBatch: 4, lingerMs: 50 });
  const sent = [];
  for (let at = 0; at < 10; at++) sent.push(await publisher.send(at % 2 ? "node.a" : "node.b", "s", at));
  await publisher.flush();
  assert.deepEqual(await Promise.all(sent.map((one) => one.id)), sent.map((_, at) => "id " + at));
  const of = (producer) => server.batches.filter(({ channels }) => channels[0] === producer).map(({ bodies }) => bodies);
  assert.deepEqual([of("node.a"), of("node.b")], [[[1, 3, 5, 7], [9]], [[0, 2, 4, 6], [8]]]);
  await publisher.close();
  await assert.rejects(publisher.send("node.a", "s", 1), TypeError);
  server.close();
});

test("sending waits for room, and a body belongs to the event as it was", async () => {
  const server = await broker();
  const publisher = await new Megaphone(server.url).publisher({ maxPending: 1, lingerMs: 0 });
  const body = { number: 1 };
  await publisher.send("node.a", "s", body);
  body.number = 2;
  await publisher.send("node.a", "s", body);
  await publisher.close();
  assert.deepEqual(server.batches.map(({ bodies }) => bodies[0].number), [1, 2]);
  server.close();
});

test("what the broker does not take yet is written again, in order, and not what it took", async () => {
  const refuse = (_, count) => count === 1 && { failures: [{ index: 1, reason: "TIMEOUT" }, { index: 2, reason: "SKIPPED" }] };
  const server = await broker(refuse);
  const publisher = await new Megaphone(server.url).publisher();
  for (const at of [0, 1, 2]) await publisher.send("node.a", "s", at);
  await publisher.close();
  assert.deepEqual(server.batches.map(({ bodies }) => bodies), [[0, 1, 2], [1, 2]]);
  assert.notEqual(server.batches[0].key, server.batches[1].key);
  server.close();
});

test("flushing throws the first error that nobody saw, and an event that is wrong fails alone", async () => {
  const server = await serve(({ body }, response) => {
    const { messages } = JSON.parse(body);
    if (messages.some((one) => one.body === "wrong")) response.writeHead(400).end('{"code":"BAD_REQUEST","message":"no"}');
    else response.end(JSON.stringify({ failures: [], eids: messages.map(() => "e") }));
  });
  const publisher = await new Megaphone(server.url).publisher();
  const sent = [];
  for (const body of ["a", "wrong", "b"]) sent.push(await publisher.send("node.a", "s", body));
  await assert.rejects(publisher.flush(), { code: "BAD_REQUEST" });
  assert.deepEqual([await sent[0].id, await sent[2].id], ["e", "e"]);
  const seen = await publisher.send("node.a", "s", "wrong");
  await assert.rejects(seen.id, { name: "BadRequest" });
  await publisher.close();
  await assert.rejects(publisher.send("node.a", "s", undefined), TypeError);
  server.close();
});
