import assert from "node:assert/strict";
import { test } from "node:test";
import { firstValueFrom, from, take, toArray } from "rxjs";
import { MegaphonePoller } from "../dist/compat.js";
import { line, serve } from "./server.js";

test("streams, delayed answers and finalizers are as in the former client", async () => {
  let asked = 0;
  const server = await serve((_, response) => {
    asked++;
    response.write(line("1", "a") + line("2", "answer") + line("3", "a") + line("4", "end") + line("5", "end"));
  });
  const formers = [];
  const factory = (...streamIds) => async (former) => {
    formers.push(former);
    return { channelAddress: "node.a.1", streamIds };
  };
  const poller = new MegaphonePoller(server.url, 100);
  const chunks = await poller.newUnboundedStream(factory("a"));
  const answers = await poller.newDelayedResponse(factory("answer"));
  const ending = await poller.newStream(factory("end"), (stream, chunk) => chunk.body !== "5");
  const [all, answer, end] = await Promise.all([
    firstValueFrom(from(chunks).pipe(take(2), toArray())),
    firstValueFrom(from(answers)),
    firstValueFrom(from(ending).pipe(toArray())),
  ]);
  assert.deepEqual(all.map(({ sid, eid, body }) => [sid, eid, body]), [["a", "1", "1"], ["a", "3", "3"]]);
  assert.equal(answer.ts, "2026-01-02T03:04:05.000Z");
  assert.deepEqual(end.map(({ body }) => body), ["4", "5"]);
  assert.deepEqual(formers, [undefined, "node.a.1", "node.a.1"]);
  assert.equal(asked, 1);
  server.close();
});

test("an observer gets the error that ends the channel, and can leave", async () => {
  const server = await serve((_, response) => response.writeHead(404).end('{"code":"NOT_FOUND","message":"gone"}'));
  const chunks = await new MegaphonePoller(server.url, 100).newUnboundedStream(async () => ({ channelId: "node.a.1", streamIds: ["a"] }));
  const left = chunks.subscribe(() => assert.fail());
  left.unsubscribe();
  const error = await new Promise((resolve) => chunks.subscribe({ error: resolve }));
  assert.equal(error.code, "NOT_FOUND");
  server.close();
});
