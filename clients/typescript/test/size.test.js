import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { minify } from "terser";

const compressed = (code) => gzipSync(code, { level: 9 }).length;
const size = (name) => compressed(readFileSync(`dist/${name}.min.js`));

test("the parts stay small", async () => {
  const { code } = await minify(readFileSync("dist/react.js", "utf8"), { module: true });
  const sizes = { megaphone: size("megaphone"), "megaphone and tabs": size("megaphone") + size("tabs"), react: compressed(code) };
  const most = { megaphone: 3_780, "megaphone and tabs": 4_580, react: 1_024 };
  for (const [name, bytes] of Object.entries(sizes)) assert.ok(bytes <= most[name], `${name}: ${bytes} of ${most[name]} bytes`);
});
