// Bundle the pages into dist/, with the WebAssembly files they load: `node build.mjs`.

import { cp, mkdir, rm } from "node:fs/promises";
import { build } from "esbuild";

const dist = new URL("dist/", import.meta.url);
const runtime = new URL("node_modules/onnxruntime-web/dist/", import.meta.url);
const wasm = ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"];

await rm(dist, { recursive: true, force: true });
await mkdir(dist);
await build({
  absWorkingDir: new URL(".", import.meta.url).pathname,
  entryPoints: ["src/page.ts", "src/selftest-page.ts"],
  outdir: "dist",
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2023",
  minify: true,
  logLevel: "warning",
});
for (const name of ["index.html", "page.css", "selftest.html"]) {
  await cp(new URL(`src/${name}`, import.meta.url), new URL(name, dist));
}
// The address by which a page continues a text with a folder: continue.html?model=NAME.
await cp(new URL("src/index.html", import.meta.url), new URL("continue.html", dist));
for (const name of wasm) {
  for (const ending of [".wasm", ".mjs"]) await cp(new URL(name + ending, runtime), new URL(name + ending, dist));
}
