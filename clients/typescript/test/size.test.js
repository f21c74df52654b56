import assert from "node:assert/strict";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const MOST = { index: 7_400, "index and tabs": 8_200, react: 1_024 };

/** Return how many bytes a page loads for this code, minified and compressed. */
async function size(contents, external = []) {
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: "." },
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    external,
    write: false,
  });
  return gzipSync(outputFiles[0].contents, { level: 9 }).length;
}

test("the parts stay small", async () => {
  const index = 'export * from "./dist/index.js";';
  const sizes = {
    index: await size(index),
    "index and tabs": await size(index + 'export * from "./dist/tabs.js";'),
    react: await size('export * from "./dist/react.js";', ["react"]),
  };
  for (const [name, most] of Object.entries(MOST)) assert.ok(sizes[name] <= most, `${name}: ${sizes[name]} of ${most} bytes`);
});
