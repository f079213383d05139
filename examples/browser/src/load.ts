// Make a session of a model's folder in this tab.

import type * as Ort from "onnxruntime-common";
import { Bundle, type Contract } from "../../node/src/bundle.js";
import type { Goldens } from "../../node/src/selftest.js";
import { makeTokenizer } from "../../node/src/text.js";
import { FolderError, type Folder } from "./folder.js";

export type Provider = "wasm" | "webgpu";

export type TextTokenizer = ReturnType<typeof makeTokenizer>;

/** What contract.json holds. */
export interface Manifest {
  readonly contract: Contract;
  readonly certificate: { readonly verdict: string; readonly reason: string } | null;
  readonly source: unknown;
  readonly files: Readonly<Record<string, { readonly sha256: string; readonly size_bytes: number }>>;
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

/** Load the model in a folder. */
export async function loadBundle(ort: typeof Ort, folder: Folder, provider: Provider): Promise<Bundle> {
  const { contract, files } = (await readJson(folder, "contract.json")) as Manifest;
  const model = await folder.read("model.onnx");
  // A page has no folder in which onnxruntime could look for the weights beside the model.
  const weights = Object.keys(files).filter((name) => /^[^/]+[._]data$/.test(name));
  const externalData = await Promise.all(
    weights.map(async (path) => ({ path, data: await folder.read(path) })),
  );
  // Errors alone: of inputs that may be left out onnxruntime warns, because it cannot fold them.
  const options = { executionProviders: [provider], logSeverityLevel: 3 as const, externalData };
  return new Bundle(ort, await ort.InferenceSession.create(model, options), contract);
}

/** The tokenizer in a folder. */
export async function loadTokenizer(folder: Folder): Promise<TextTokenizer> {
  const settings = await readJson(folder, "tokenizer_config.json").catch(() => ({}));
  return makeTokenizer((await readJson(folder, "tokenizer.json")) as object, settings as object);
}

export async function loadGoldens(folder: Folder): Promise<Goldens> {
  return (await readJson(folder, "goldens.json")) as Goldens;
}

/** The JSON document in a file of a folder. */
export async function readJson(folder: Folder, file: string): Promise<unknown> {
  const text = new TextDecoder().decode(await folder.read(file));
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FolderError(`${file} in “${folder.name}” is not JSON: ${String(error)}.`);
  }
}
