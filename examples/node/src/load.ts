// Read a bundle from its folder.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import { Bundle, type Contract } from "./bundle.js";
import type { Goldens } from "./selftest.js";

/** Load a bundle from its folder. */
export async function load(folder: string): Promise<{ bundle: Bundle; goldens: Goldens }> {
  const readJson = async (name: string) => JSON.parse(await readFile(join(folder, name), "utf8"));
  const { contract } = (await readJson("contract.json")) as { contract: Contract };
  // Errors alone: of inputs that may be left out onnxruntime warns, because it cannot fold them.
  const options = { logSeverityLevel: 3 as const };
  const session = await ort.InferenceSession.create(join(folder, "model.onnx"), options);
  const goldens = (await readJson("goldens.json")) as Goldens;
  return { bundle: new Bundle(ort, session, contract), goldens };
}
