import assert from "node:assert/strict";
import { test } from "node:test";
import { connect } from "../dist/connection.js";
import { newHttp } from "../dist/http.js";

/** Return the bodies of the events in an answer that comes in these pieces. */
async function bodies(pieces) {
  const body = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(piece);
      controller.close();
    },
  });
  const found = [];
  const http = newHttp("http://broker", { fetch: async () => new Response(body) });
  const take = (line) => line && found.push(line.body);
  await connect(http, new AbortController(), { path: "/read/a", beatMs: 1_000, opened() {}, take });
  return found;
}

const line = (body) => JSON.stringify({ sid: "s", eid: "e", ts: "", body }) + "\n";
const bytes = new TextEncoder().encode(`${line("é")}\r\n\n${line("日本")}${line({ a: [1, "\n"] })}`);

test("lines are whole, however their bytes are cut", async () => {
  for (let size = 1; size <= bytes.length; size++) {
    const pieces = [];
    for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
    assert.deepEqual(await bodies(pieces), ["é", "日本", { a: [1, "\n"] }]);
  }
});

test("a line that the end of the answer cuts is dropped", async () => {
  assert.deepEqual(await bodies([bytes.slice(0, -3)]), ["é", "日本"]);
});

test("a line that is no event, and bytes that are no text, are an error that does not repeat them", async () => {
  for (const wrong of ["[1]\n", "secret\n", '{"secret":1}\n', "null\n", Uint8Array.of(0xff, 0x0a)]) {
    const piece = typeof wrong === "string" ? new TextEncoder().encode(wrong) : wrong;
    await assert.rejects(bodies([bytes, piece]), ({ code, message }) => {
      assert.equal(code, "PROTOCOL_ERROR");
      return !message.includes("secret");
    });
  }
});

test("a long line in many pieces takes time in proportion to its length", async () => {
  const long = new TextEncoder().encode(line("x".repeat(2_000_000)));
  const pieces = [];
  for (let at = 0; at < long.length; at += 1_000) pieces.push(long.slice(at, at + 1_000));
  const [body] = await bodies(pieces);
  assert.equal(body.length, 2_000_000);
});
