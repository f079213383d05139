// `node dist/main.js BUNDLE` prints what the self-test found, as one line of JSON.

import { createRequire } from "node:module";
import process from "node:process";
import { load, oneLineErrors } from "./load.js";
import { selftest } from "./selftest.js";

oneLineErrors();
const { bundle, goldens } = await load(process.argv[2] ?? ".");
const report = await selftest(bundle, goldens);
const { version } = createRequire(import.meta.url)("onnxruntime-node/package.json");
process.stdout.write(JSON.stringify({ runtime: `onnxruntime-node ${version}`, ...report }) + "\n");
process.exitCode = report.passed ? 0 : 1;
