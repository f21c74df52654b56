import assert from "node:assert/strict";
import { test } from "node:test";
import { StrictMode, createElement as h } from "react";
import { act, create } from "react-test-renderer";
import { Megaphone } from "../dist/index.js";
import { useFirst, useStream } from "../dist/react.js";
import { line, serve } from "./server.js";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;

const settle = (holds) =>
  act(async () => {
    for (let tries = 0; tries < 1_000 && !holds(); tries++) await new Promise((resolve) => setTimeout(resolve, 5));
    assert.ok(holds());
  });

test("components show the last events and the first answer over one read, also in StrictMode", async (t) => {
  t.mock.method(console, "error", () => {}); // the renderer for tests is deprecated, and says so
  let asked = 0;
  let closed = 0;
  const server = await serve((_, response) => {
    asked++;
    response.on("close", () => closed++);
    response.write(line("1", "a") + line("2", "a") + line("3", "a") + line("4", "answer"));
  });
  const channel = new Megaphone(server.url).channel("node.a.1");
  const seen = {};
  const List = () => {
    seen.list = useStream(channel, "a", { keep: 2 }).map(({ body }) => body);
    return null;
  };
  const Answer = () => {
    seen.answer = useFirst(channel, "answer");
    seen.nothing = useFirst(undefined, "answer");
    return null;
  };
  let root;
  act(() => {
    root = create(h(StrictMode, null, h(List), h(Answer), h(List)));
  });
  assert.deepEqual(seen, { list: [], answer: undefined, nothing: undefined });
  await settle(() => seen.answer && seen.list.length === 2);
  assert.deepEqual(seen, { list: ["2", "3"], answer: "4", nothing: undefined });
  assert.equal(asked, 1);
  act(() => root.unmount());
  assert.equal(closed, 0);
  await settle(() => closed === 1); // a second after the last user
  await channel.close();
  server.close();
});

test("the error that ends a channel is thrown", async (t) => {
  t.mock.method(console, "error", () => {});
  const server = await serve((_, response) => response.writeHead(404).end('{"code":"NOT_FOUND","message":"gone"}'));
  const channel = new Megaphone(server.url).channel("node.a.1");
  const List = () => useStream(channel, "a").length;
  let failure;
  try {
    act(() => void create(h(List)));
    await settle(() => channel.state === "closed");
  } catch (error) {
    failure = error;
  }
  assert.equal(failure?.code, "NOT_FOUND");
  server.close();
});
