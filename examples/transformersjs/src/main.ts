// Continue ids with transformers.js: `node dist/main.js BUNDLE IDS COUNT`. BUNDLE is a language model's,
// IDS a JSON list. Prints one line of JSON with what was added, greedily.

import { readFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import {
  AutoModelForCausalLM,
  AutoTokenizer,
  DynamicCache,
  env,
  PretrainedConfig,
  Tensor,
} from "@huggingface/transformers";

interface Spec {
  readonly name: string;
  readonly dtype: string;
  readonly axes: readonly (string | number)[];
}

interface Manifest {
  readonly contract: {
    readonly inputs: readonly Spec[];
    readonly cache: readonly { past: string; present: string }[];
  };
}

const [folder = ".", ids = "[]", count = "1"] = process.argv.slice(2);
const prompt = JSON.parse(ids) as number[];
const { contract } = JSON.parse(await readFile(join(folder, "contract.json"), "utf8")) as Manifest;

env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(folder)) + "/";
const name = basename(resolve(folder));
const model = await AutoModelForCausalLM.from_pretrained(name, {
  // Of a configuration it reads the number of layers alone: their caches are the contract's.
  config: new PretrainedConfig({
    model_type: "llama",
    num_hidden_layers: contract.cache.length / 2,
  }),
  subfolder: "",
  model_file_name: "model",
  dtype: "fp32",
  device: "cpu",
});

// An empty cache, because transformers.js knows the axis of the batch by another name.
const pasts = contract.cache.map(({ past }) => {
  const spec = contract.inputs.find((input) => input.name === past)!;
  const sizes: Record<string, number> = { batch: 1, past_seq: 0 };
  const dims = spec.axes.map((axis) => (typeof axis === "number" ? axis : sizes[axis]!));
  return [past, new Tensor("float32", new Float32Array(0), dims)] as const;
});

const inputs = new Tensor("int64", BigInt64Array.from(prompt, BigInt), [1, prompt.length]);
const start = performance.now();
const output = (await model.generate({
  inputs,
  past_key_values: new DynamicCache(Object.fromEntries(pasts)),
  max_new_tokens: Number(count),
  do_sample: false,
} as Parameters<typeof model.generate>[0])) as Tensor;
const took = performance.now() - start;

const all = (output.tolist() as bigint[][])[0]!.map(Number);
const tokenizer = await AutoTokenizer.from_pretrained(name);
process.stdout.write(
  JSON.stringify({
    runtime: `transformers.js ${env.version}`,
    ids: all.slice(prompt.length),
    text: tokenizer.decode(all, { skip_special_tokens: true }),
    ms_per_token: took / Number(count),
  }) + "\n",
);
