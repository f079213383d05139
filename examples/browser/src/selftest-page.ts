// selftest.html?provider=wasm: replay the golden vectors of the bundle that is served at bundle/.

import { selftest } from "../../node/src/selftest.js";
import { servedFolder } from "./folder.js";
import { hasWebGpu, loadBundle, loadGoldens, openRuntime, type Provider } from "./load.js";

async function run(): Promise<unknown> {
  const provider = (new URLSearchParams(location.search).get("provider") ?? "wasm") as Provider;
  if (provider === "webgpu" && !(await hasWebGpu())) return { missing: "no adapter for WebGPU" };
  const ort = await openRuntime(provider);
  const folder = servedFolder("bundle/");
  const bundle = await loadBundle(ort, folder, provider);
  const report = await selftest(bundle, await loadGoldens(folder), 30);
  const version = ort.env.versions?.web ?? "of an unknown version";
  return { runtime: `onnxruntime-web ${version} ${provider}`, ...report };
}

const output = document.querySelector("output")!;
run().then(
  (found) => (output.textContent = JSON.stringify(found)),
  (error: unknown) => (output.textContent = JSON.stringify({ failed: String(error) })),
);
