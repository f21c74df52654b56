// Makes what pages load without a bundler: dist/megaphone.min.js and tabs.min.js. Parts that most pages do not need
// are files of their own, which they load on demand.

import { writeFileSync } from "node:fs";
import { rollup } from "rollup";
import { minify } from "terser";

const DIST = "dist/";
/** Names that only these files use for members. A name that a user of the client may see is none of them. */
const OWN = new RegExp(
  "^(acknowledges|ackUpTo|ask|beatMs|become|came|deal|dealAll|dealing|deals|dealt|ended|event|failed|handed|hasBegun|ids|isCut|isFull|isOver|isSilent|items|iterate|left|opened|pending|put|readAddress|received|room|settle|sink)$",
);
const CORE = ["index", "channel", "connection", "errors", "http", "inbox", "read", "reads", "time"];

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
    mangle: { properties: { regex: OWN, builtins: true } },
    nameCache,
  });
  writeFileSync(DIST + fileName, made.code + "\n");
}
