// Fetch a bundle and make a session of it in this tab.

import type * as Ort from "onnxruntime-common";
import { Bundle, type Contract } from "../../node/src/bundle.js";
import type { Goldens } from "../../node/src/selftest.js";

export type Provider = "wasm" | "webgpu";

/** Whether this browser has an adapter for WebGPU. */
export async function hasWebGpu(): Promise<boolean> {
  const gpu = (navigator as { gpu?: { requestAdapter(): Promise<unknown> } }).gpu;
  return gpu !== undefined && (await gpu.requestAdapter()) !== null;
}

/** onnxruntime for one provider: each has a WebAssembly file of its own, fetched at its first use. */
export async function openRuntime(provider: Provider): Promise<typeof Ort> {
  const ort =
    provider === "webgpu"
      ? await import("onnxruntime-web/webgpu")
      : await import("onnxruntime-web/wasm");
  ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
  // More threads need a page that is isolated from other origins; these models are small.
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  return ort;
}

/** Load the bundle at an address that ends in "/". */
export async function loadBundle(ort: typeof Ort, url: string, provider: Provider): Promise<Bundle> {
  const { contract } = (await fetchJson(url + "contract.json")) as { contract: Contract };
  const model = await (await fetchGood(url + "model.onnx")).arrayBuffer();
  // Errors alone: of inputs that may be left out onnxruntime warns, because it cannot fold them.
  const options = { executionProviders: [provider], logSeverityLevel: 3 as const };
  return new Bundle(ort, await ort.InferenceSession.create(model, options), contract);
}

export async function loadGoldens(url: string): Promise<Goldens> {
  return (await fetchJson(url + "goldens.json")) as Goldens;
}

async function fetchJson(url: string): Promise<unknown> {
  return (await fetchGood(url)).json();
}

async function fetchGood(url: string): Promise<Response> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return response;
}
