import assert from "node:assert/strict";
import { test } from "node:test";
import { Acknowledging } from "../dist/acks.js";
import { MegaphoneError, connectionFailed } from "../dist/errors.js";
import { Many } from "../dist/many.js";
import { Read } from "../dist/read.js";

const line = (eid) => ({ sid: "s", eid, ts: "", body: null });

function read({ acknowledges = false, after, address = "node.a.1" } = {}) {
  const seen = [];
  const sink = {
    take: ({ eid }) => seen.push(eid),
    gap: () => seen.push("gap"),
    become: () => {},
    ended: (error) => seen.push(error.code),
  };
  const common = [address, 1_000, sink, after];
  return { read: acknowledges ? new Acknowledging({ options: {} }, undefined, ...common) : new Read(...common), seen };
}

const error = (code, status, retryAfterS) => new MegaphoneError(code, "", status, retryAfterS);

test("a read resumes behind the last event that came", () => {
  const { read: one } = read();
  assert.equal(one.ask("me").after, undefined);
  one.opened(false, "p");
  assert.equal(one.ask("me").after, "p");
  one.take(line("1"));
  one.take(line("2"));
  assert.equal(one.ask("me").after, "2");
});

test("a read that acknowledges resumes behind the last event dealt with", () => {
  const { read: one } = read({ acknowledges: true, after: "0" });
  one.opened(false, "0");
  one.take(line("1"));
  one.take(line("2"));
  one.deal("1");
  assert.equal(one.ask("me").after, "1");
  assert.equal(one.due, 1);
  one.opened(false, "1"); // the cursor of a read acknowledges
  assert.equal(one.due, 0);
});

test("none of the last 1,000 events is shown twice", () => {
  const { read: one, seen } = read();
  const lines = Array.from({ length: 3_000 }, (_, at) => line(String(at)));
  for (const each of [...lines, ...lines.slice(-1_000)]) one.take(each);
  assert.equal(seen.length, 3_000);
});

test("a gap is told, and moves the cursor", () => {
  const { read: one, seen } = read({ acknowledges: true, after: "lost" });
  one.opened(true, "7");
  assert.deepEqual(seen, ["gap"]);
  assert.equal(one.ask("me").after, "7");
});

test("a lost answer to a first read makes the next one begin at the oldest event", () => {
  const { read: one } = read();
  one.ask("me");
  one.failed(connectionFailed());
  assert.equal(one.ask("me").after, "-");
});

test("waits grow to 30 s, have chance in them, and are at least as long as the broker says", (t) => {
  t.mock.method(Math, "random", () => 1);
  const { read: one } = read();
  const waits = Array.from({ length: 12 }, () => one.failed(error("SHUTTING_DOWN", 503)));
  assert.deepEqual(waits.slice(0, 3), [100, 200, 400]);
  assert.equal(waits.at(-1), 30_000);
  one.take();
  assert.equal(one.failed(error("SHUTTING_DOWN", 503)), 100);
  assert.equal(one.failed(error("SHUTTING_DOWN", 503, 60)), 60_000);
});

test("what no other try heals ends a read", () => {
  for (const code of ["NOT_FOUND", "BAD_REQUEST", "PERMISSION_DENIED", "TAKEN_OVER", "PROTOCOL_ERROR"]) {
    const { read: one, seen } = read();
    assert.equal(one.failed(error(code)), undefined);
    assert.deepEqual(seen, [code]);
  }
});

test("a first read waits 30 s for another one to end", (t) => {
  let ms = 1;
  t.mock.method(performance, "now", () => ms);
  const { read: one, seen } = read();
  assert.notEqual(one.failed(error("BUSY")), undefined);
  ms += 29_999;
  assert.notEqual(one.failed(error("BUSY")), undefined);
  ms += 1;
  assert.equal(one.failed(error("BUSY")), undefined);
  assert.deepEqual(seen, ["BUSY"]);
});

test("a clean end is followed by the next read at once, unless each ends at once", (t) => {
  let ms = 1;
  t.mock.method(performance, "now", () => ms);
  const { read: one } = read();
  one.ask("me");
  ms += 20_000;
  assert.equal(one.ended(), 0);
  one.ask("me");
  assert.ok(one.ended() >= 100);
});

test("a long poll brings one event, and the next one what came meanwhile", () => {
  const { read: one } = read();
  assert.deepEqual([one.ask("me", true).limit, one.ask("me", true).wait_ms], [1, 1_000]);
  one.take(line("1"));
  assert.equal(one.ask("me", true).wait_ms, 0);
  assert.equal(one.ask("me", true).limit, 1);
});

test("a long poll leaves room for what comes again, because the app has not dealt with it", () => {
  const { read: one } = read({ acknowledges: true, after: "0" });
  const limit = () => (one.ask("me", true), one.ask("me", true).limit);
  const take = (...eids) => eids.forEach((eid) => one.take(line(eid)));
  one.opened(false, "0");
  take("1", "2", "3");
  assert.equal(limit(), 4);
  one.take();
  take("1", "2", "3");
  assert.equal(limit(), 4);
  one.deal("1");
  assert.equal(limit(), 3);
  one.deal("2"); // while the answer is on its way
  take("2", "3", "4");
  assert.equal(limit(), 3);
  one.opened(true, "3"); // after a gap, all that comes again is in the answer
  assert.equal(limit(), 1);
  take("4");
  assert.equal(limit(), 2);
});

test("a long poll of many channels brings one event that is new for any, and the next one what came meanwhile for all", async () => {
  const all = ["node.a.1", "node.b.1"].map((address) => read({ acknowledges: true, after: "0", address }).read);
  const asked = async () => {
    let many;
    const body = await new Promise((resolve) => {
      many = new Many({ options: {}, polls: true, open: (_, request) => new Promise(() => resolve(request.body)) }, "me");
      for (const one of all) many.add(one);
    });
    for (const one of all) many.remove(one);
    return JSON.parse(body);
  };
  for (const one of all) one.opened(false, "0");
  for (const eid of ["1", "2"]) all[1].take(line(eid));
  const news = await asked();
  assert.deepEqual([news.limit, news.wait_ms], [undefined, 0]);
  const next = await asked();
  assert.deepEqual([next.limit, next.wait_ms], [3, 1_000]);
});
