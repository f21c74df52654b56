import assert from "node:assert/strict";
import { test } from "node:test";
import { firstValueFrom, from, take, toArray } from "rxjs";
import { line, serve } from "./server.js";

// FORMER_CLIENT may name the built file of the former client (0.10.3), which passes the first of these tests.
const former = process.env.FORMER_CLIENT;
const { MegaphonePoller } = await import(former ?? "../dist/compat.js");

test("streams, delayed answers and finalizers are as in the former client", async () => {
  const asked = [];
  const server = await serve(({ method, path }, response) => {
    asked.push(method + path);
    response.write(line("1", "a") + line("2", "answer") + line("3", "a") + line("4", "end") + line("5", "end"));
  });
  const channelAddress = { producer: "node.a", consumer: "node.a.1" };
  const formers = [];
  const factory = (...streamIds) => async (former) => {
    formers.push(former);
    return former ? { streamIds } : { channelAddress, streamIds };
  };
  const poller = new MegaphonePoller(server.url, 100);
  const chunks = await poller.newUnboundedStream(factory("a"));
  const answers = await poller.newDelayedResponse(factory("answer"));
  const ending = await poller.newStream(factory("end"), (stream, chunk) => chunk.body !== "5");
  const [all, answer, end] = await Promise.all([
    firstValueFrom(from(chunks).pipe(take(2), toArray())),
    firstValueFrom(from(answers)),
    firstValueFrom(from(ending).pipe(take(2), toArray())),
  ]);
  assert.deepEqual(all.map(({ sid, eid, body }) => [sid, eid, body]), [["a", "1", "1"], ["a", "3", "3"]]);
  assert.equal(Date.parse(answer.ts), Date.parse("2026-01-02T03:04:05Z"));
  assert.deepEqual(end.map(({ body }) => body), ["4", "5"]);
  assert.deepEqual(asked, ["GET/read/node.a.1"]);
  assert.equal(formers[0], undefined);
  server.close();
});

test("a factory learns which channel is read, so that it can use that again", { skip: former }, async () => {
  const server = await serve((_, response) => response.flushHeaders());
  const poller = new MegaphonePoller(server.url, 100);
  const addresses = [];
  const factory = async (address) => {
    addresses.push(address);
    return { channelAddress: "node.a.1", streamIds: ["a"] };
  };
  const chunks = await poller.newUnboundedStream(factory);
  const subscription = chunks.subscribe(() => {});
  await poller.newUnboundedStream(factory);
  subscription.unsubscribe();
  await poller.newUnboundedStream(factory);
  assert.deepEqual(addresses, [undefined, "node.a.1", undefined]);
  const named = new MegaphonePoller(server.url, 100);
  await named.newUnboundedStream(async () => ({ channelAddress: { producer: "node.a", consumer: "node.a.1" }, streamIds: ["a"] }));
  await named.newUnboundedStream(async (former) => (addresses.push(former), { streamIds: ["b"] }));
  assert.equal(addresses.at(-1), "node.a");
  await assert.rejects(new MegaphonePoller(server.url).newUnboundedStream(async () => ({ streamIds: ["a"] })), TypeError);
  server.close();
});

test("an answer that comes before somebody subscribes is kept", { skip: former }, async () => {
  const server = await serve((_, response) => response.write(line("1", "answer") + line("2", "a")));
  const poller = new MegaphonePoller(server.url, 100);
  const factory = (stream) => async () => ({ channelAddress: "node.a.1", streamIds: [stream] });
  const [answers, chunks] = [await poller.newDelayedResponse(factory("answer")), await poller.newUnboundedStream(factory("a"))];
  const subscription = await new Promise((resolve) => {
    const made = chunks.subscribe(() => setTimeout(() => resolve(made)));
  });
  const answer = await firstValueFrom(from(answers));
  assert.equal(answer.body, "1");
  subscription.unsubscribe();
  server.close();
});

test("an observer gets the error that ends the channel, and can leave", { skip: former }, async () => {
  const server = await serve((_, response) => response.writeHead(404).end('{"code":"NOT_FOUND","message":"gone"}'));
  const chunks = await new MegaphonePoller(server.url, 100).newUnboundedStream(async () => ({ channelId: "node.a.1", streamIds: ["a"] }));
  const left = chunks.subscribe(() => assert.fail());
  left.unsubscribe();
  const error = await new Promise((resolve) => chunks.subscribe({ error: resolve }));
  assert.equal(error.code, "NOT_FOUND");
  server.close();
});
