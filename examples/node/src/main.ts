// `node dist/main.js BUNDLE` prints what the self-test found, as one line of JSON.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import process from "node:process";
import * as ort from "onnxruntime-node";
import { Bundle, type Contract } from "./bundle.js";
import { selftest, type Goldens } from "./selftest.js";

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

const { bundle, goldens } = await load(process.argv[2] ?? ".");
const report = await selftest(bundle, goldens);
const { version } = createRequire(import.meta.url)("onnxruntime-node/package.json");
process.stdout.write(JSON.stringify({ runtime: `onnxruntime-node ${version}`, ...report }) + "\n");
process.exitCode = report.passed ? 0 : 1;
