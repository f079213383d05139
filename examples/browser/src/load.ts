// Fetch a bundle and make a session of it in this tab.

import type * as Ort from "onnxruntime-common";
import { Bundle, type Contract } from "../../node/src/bundle.js";
import type { Goldens } from "../../node/src/selftest.js";
import { makeTokenizer } from "../../node/src/text.js";

export type Provider = "wasm" | "webgpu";

interface Manifest {
  readonly contract: Contract;
  readonly files: Readonly<Record<string, unknown>>;
}

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
  const { contract, files } = (await fetchJson(url + "contract.json")) as Manifest;
  const model = await fetchBytes(url + "model.onnx");
  // A page has no folder in which onnxruntime could look for the weights beside the model.
  const weights = Object.keys(files).filter((name) => /^[^/]+[._]data$/.test(name));
  const externalData = await Promise.all(
    weights.map(async (path) => ({ path, data: await fetchBytes(url + path) })),
  );
  // Errors alone: of inputs that may be left out onnxruntime warns, because it cannot fold them.
  const options = { executionProviders: [provider], logSeverityLevel: 3 as const, externalData };
  return new Bundle(ort, await ort.InferenceSession.create(model, options), contract);
}

/** The tokenizer in a folder at an address that ends in "/". */
export async function loadTokenizer(url: string): Promise<ReturnType<typeof makeTokenizer>> {
  const settings = await fetchJson(url + "tokenizer_config.json").catch(() => ({}));
  return makeTokenizer((await fetchJson(url + "tokenizer.json")) as object, settings as object);
}

export async function loadGoldens(url: string): Promise<Goldens> {
  return (await fetchJson(url + "goldens.json")) as Goldens;
}

async function fetchBytes(url: string): Promise<Uint8Array> {
  return new Uint8Array(await (await fetchGood(url)).arrayBuffer());
}

async function fetchJson(url: string): Promise<unknown> {
  return (await fetchGood(url)).json();
}

async function fetchGood(url: string): Promise<Response> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return response;
}
