import assert from "node:assert/strict";
import { test } from "node:test";
import { Splitter } from "../dist/lines.js";

const bytes = new TextEncoder().encode('{"a":"é𝄞"}\n\n{"b":2}\n{"cut":');

test("lines are the same however their bytes are split", () => {
  for (let size = 1; size <= bytes.length; size++) {
    const splitter = new Splitter();
    const lines = [];
    for (let at = 0; at < bytes.length; at += size) lines.push(...splitter.push(bytes.slice(at, at + size)));
    assert.deepEqual(lines, ['{"a":"é𝄞"}', "", '{"b":2}']);
  }
});

test("a line in 20,000 pieces takes no more than linear time", () => {
  const splitter = new Splitter();
  const piece = new Uint8Array(1_000).fill(97);
  const begun = performance.now();
  for (let count = 0; count < 20_000; count++) splitter.push(piece);
  const [line] = splitter.push(Uint8Array.of(10));
  assert.equal(line.length, 20_000_000);
  assert.ok(performance.now() - begun < 10_000);
});

test("what is not UTF-8 is refused", () => {
  assert.throws(() => new Splitter().push(Uint8Array.of(255, 10)), TypeError);
});
