// Read a bundle from its folder.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import * as ort from "onnxruntime-node";
import { Bundle, type Contract } from "./bundle.js";
import type { Goldens } from "./selftest.js";

/** End the program with one line where something goes wrong, instead of a trace. */
export function oneLineErrors(): void {
  process.on("uncaughtException", (error) => {
    process.stderr.write(`error: ${error.message}\n`);
    process.exit(1);
  });
}

/** Load a bundle from its folder. */
export async function load(folder: string): Promise<{ bundle: Bundle; goldens: Goldens }> {
  const readJson = async (name: string) => {
    const text = await readFile(join(folder, name), "utf8").catch((error: Error) => {
      const expected = "expected the folder of a model, which causal-onnx export or bundle writes";
      throw new Error(`${folder} has no ${name} that can be read; ${expected}`, { cause: error });
    });
    return JSON.parse(text);
  };
  const { contract, format } = (await readJson("contract.json")) as { contract: Contract; format: unknown };
  if (format !== 1) throw new Error(`contract.json is of format ${JSON.stringify(format)}, expected 1`);
  // Errors alone: of inputs that may be left out onnxruntime warns, because it cannot fold them.
  const options = { logSeverityLevel: 3 as const };
  const session = await ort.InferenceSession.create(join(folder, "model.onnx"), options);
  const goldens = (await readJson("goldens.json")) as Goldens;
  return { bundle: new Bundle(ort, session, contract), goldens };
}
