// Makes what pages load without a bundler: dist/megaphone.min.js and tabs.min.js. Parts that most pages do not need
// are files of their own, which they load on demand.

import { writeFileSync } from "node:fs";
import { rollup } from "rollup";
import { minify } from "terser";

const DIST = "dist/";
/** Names that only these files use for members. A name that a user of the client may see is none of them. */
const OWN = new RegExp(
  "^(acknowledges|alive|asked|deal|deal[AL]\\w+|dealing|dealt|enter|failed|forget|handed|hasBegun|isCut|isFull|isOver|known|lastByte|leave|ledger|opened|pass|put|received|settled|sink|taken|wants)$",
);
const CORE = ["index", "channel", "connection", "errors", "events", "http", "inbox", "read", "reads", "time"];

const bundle = await rollup({
  input: { megaphone: DIST + "index.js", tabs: DIST + "tabs.js" },
  preserveEntrySignatures: "allow-extension",
});
const { output } = await bundle.generate({
  entryFileNames: "[name].min.js",
  chunkFileNames: "[name].min.js",
  manualChunks: (id) => (CORE.some((name) => id.endsWith(`/${name}.js`)) ? "megaphone" : undefined),
  minifyInternalExports: true,
});
const nameCache = {};
for (const { code, fileName } of output) {
  const made = await minify(code, {
    module: true,
    ecma: 2020,
    compress: { passes: 3, unsafe_arrows: true },
    mangle: { properties: { regex: OWN } },
    nameCache,
  });
  writeFileSync(DIST + fileName, made.code + "\n");
}
