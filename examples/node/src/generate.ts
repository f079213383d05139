// Continue a text: `node dist/generate.js FOLDER PROMPT COUNT`, greedily. FOLDER is that of a language
// model with its tokenizer; PROMPT a text, or a JSON list of ids. Prints one line of JSON.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import process from "node:process";
import * as ort from "onnxruntime-node";
import { Stream } from "./bundle.js";
import { choose } from "./choose.js";
import { load, oneLineErrors } from "./load.js";
import { decode, makeTokenizer, TextStream } from "./text.js";

oneLineErrors();
const [folder = ".", prompt = "", count = "40"] = process.argv.slice(2);
const { bundle } = await load(folder);
const readJson = async (name: string) => JSON.parse(await readFile(join(folder, name), "utf8"));
const tokenizer = makeTokenizer(
  await readJson("tokenizer.json"),
  await readJson("tokenizer_config.json").catch(() => ({})),
);
const given = prompt.startsWith("[") ? (JSON.parse(prompt) as number[]) : tokenizer.encode(prompt).ids;
const ends = new Set(bundle.contract.eos_token_ids ?? []);
const most = Math.min(Number(count), (bundle.contract.max_seq_len ?? Infinity) - given.length + 1);
const name = bundle.inputs[0]!.name;

const stream = new Stream(bundle);
const pieces = new TextStream(tokenizer, given);
let text = decode(tokenizer, given);
let next = given;
const ids: number[] = [];
const start = performance.now();
while (ids.length < most && !ends.has(ids.at(-1) ?? -1)) {
  const data = BigInt64Array.from(next, BigInt);
  const { logits } = await stream.read({ [name]: new ort.Tensor("int64", data, [1, next.length]) });
  const last = (logits!.data as Float32Array).slice(-logits!.dims[2]!);
  next = [choose(last, 0, 0)];
  ids.push(...next);
  text += pieces.push(next[0]!, ids.length === most);
}
const took = performance.now() - start;
const { version } = createRequire(import.meta.url)("onnxruntime-node/package.json");
const found = { runtime: `onnxruntime-node ${version}`, ids, text, ms_per_token: took / ids.length };
process.stdout.write(JSON.stringify(found) + "\n");
