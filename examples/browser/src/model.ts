// A model as the page shows it.

import type * as Ort from "onnxruntime-common";
import { Stream, type Bundle } from "../../node/src/bundle.js";
import { choose } from "../../node/src/choose.js";
import { replay } from "../../node/src/selftest.js";
import { TextStream } from "../../node/src/text.js";
import { describe, weightsOf, whyNoContinuation, whyNoText } from "./ability.js";
import { checkFolder } from "./check.js";
import { FolderError, servedFolder, type Folder } from "./folder.js";
import {
  loadBundle,
  loadGoldens,
  loadTokenizer,
  readJson,
  type Manifest,
  type Provider,
  type TextTokenizer,
} from "./load.js";
import { AttentionMaps } from "./maps.js";

/** What computes, and where. */
export interface Engine {
  readonly ort: typeof Ort;
  readonly provider: Provider;
}

/** A model, and what of it can be shown. */
export class ShownModel {
  constructor(
    private readonly ort: typeof Ort,
    readonly name: string,
    readonly tokenizer: TextTokenizer | undefined,
    /** Returns attention weights. */
    private readonly weigher: Bundle | undefined,
    /** Continues text through its cache. */
    private readonly decoder: Bundle | undefined,
    /** Sentences on what was checked, and what cannot be shown. */
    readonly facts: readonly string[],
  ) {}

  get hasMaps(): boolean {
    return this.weigher !== undefined;
  }

  get canContinue(): boolean {
    return this.decoder !== undefined;
  }

  /** The longest text, in tokens. */
  get most(): number {
    const limits = [this.weigher, this.decoder].map((bundle) => bundle?.contract.max_seq_len);
    return Math.min(...limits.map((limit) => limit ?? Infinity));
  }

  encode(text: string): number[] {
    return this.tokenizer?.encode(text).ids ?? [];
  }

  /** The attention weights over a text. */
  async maps(ids: readonly number[]): Promise<AttentionMaps> {
    const bundle = this.weigher!;
    const outputs = await bundle.run({ [bundle.inputs[0]!.name]: this.tensor(ids) });
    return new AttentionMaps(outputs[weightsOf(bundle)!.name]!);
  }

  /** Read ids through the cache, then token by token what the model adds; yields its text. */
  async *continue(ids: readonly number[], temperature: () => number): AsyncGenerator<string> {
    const bundle = this.decoder!;
    const most = bundle.contract.max_seq_len ?? Infinity;
    const ends = new Set(bundle.contract.eos_token_ids ?? []);
    const stream = new Stream(bundle);
    const pieces = new TextStream(this.tokenizer!, ids);
    let next = ids;
    while (stream.length + next.length <= most) {
      const { logits } = await stream.read({ [bundle.inputs[0]!.name]: this.tensor(next) });
      const last = (logits!.data as Float32Array).slice(-logits!.dims[2]!);
      next = [choose(last, temperature(), Math.random())];
      const isLast = stream.length === most || ends.has(next[0]!);
      yield pieces.push(next[0]!, isLast);
      if (isLast) return;
    }
  }

  private tensor(ids: readonly number[]): Ort.Tensor {
    return new this.ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
  }
}

/** The model of `make examples`, of which one export returns attention weights and one has a cache. */
export async function loadExample({ ort, provider }: Engine): Promise<ShownModel> {
  const folder = servedFolder("bundles/language_model/");
  const weigher = await loadBundle(ort, servedFolder("bundles/attention_maps/"), provider);
  const decoder = await loadBundle(ort, folder, provider);
  const tokenizer = await loadTokenizer(folder);
  return new ShownModel(ort, "the example model", tokenizer, weigher, decoder, []);
}

/** A model of this page's server, which wrote and checked it. */
export async function loadServed(engine: Engine, name: string): Promise<ShownModel> {
  const folder = servedFolder(`bundles/${encodeURIComponent(name)}/`);
  const bundle = await loadBundle(engine.ort, folder, engine.provider);
  return present(engine, name, bundle, await loadTokenizer(folder), []);
}

/** A folder that a person chose: it is checked before it is shown. */
export async function loadOwn(
  engine: Engine,
  chosen: Folder,
  progress: (words: string) => void,
): Promise<ShownModel> {
  const folder = await checkFolder(chosen, (file) => progress(`Checking ${file} …`));
  progress("Loading the model …");
  const bundle = await loadBundle(engine.ort, folder, engine.provider).catch((error: unknown) => {
    if (error instanceof FolderError) throw error;
    throw new FolderError(
      `onnxruntime-web cannot load model.onnx of “${folder.name}” (${String(error)}). ` +
        "Export it with --target portable, which is standard operators alone.",
    );
  });
  progress("Replaying the golden vectors …");
  const goldens = await loadGoldens(folder);
  const found = await replay(bundle, goldens).catch((error: unknown) => {
    throw new FolderError(
      `The golden vectors of “${folder.name}” cannot be replayed in this browser: ${String(error)}`,
    );
  });
  const allowed = goldens.tolerance.toExponential(0);
  if (!found.passed) {
    throw new FolderError(
      `model.onnx of “${folder.name}” does not repeat goldens.json in this browser: its largest error is ` +
        `${found.error.toExponential(1)} of an output's scale, and ${allowed} is allowed. ` +
        "Export it with --target portable, or in fp32.",
    );
  }
  const { files, certificate } = (await readJson(folder, "contract.json")) as Manifest;
  const tokenizer = "tokenizer.json" in files ? await loadTokenizer(folder) : undefined;
  return present(engine, `“${folder.name}”`, bundle, tokenizer, [
    `All ${Object.keys(files).length} files have the hashes in contract.json. In this browser the model ` +
      `repeats its golden vectors; the largest error is ${found.error.toExponential(1)} of an output's ` +
      `scale, and ${allowed} is allowed.`,
    certificate === null
      ? "It has no certificate: nothing was proved about it."
      : `Its certificate says “${certificate.verdict}”: ${certificate.reason}. ` +
        "causal-onnx attest proves it again.",
  ]);
}

function present(
  { ort }: Engine,
  name: string,
  bundle: Bundle,
  tokenizer: TextTokenizer | undefined,
  facts: readonly string[],
): ShownModel {
  const noText =
    whyNoText(bundle) ?? (tokenizer === undefined ? "its folder has no tokenizer.json" : undefined);
  const noContinuation = noText ?? whyNoContinuation(bundle);
  const weights = noText === undefined ? weightsOf(bundle) : undefined;
  const said = [...facts];
  if (noText !== undefined) {
    const presents = new Set(bundle.contract.cache.map((pair) => pair.present));
    const outputs = bundle.contract.outputs
      .filter((spec) => !presents.has(spec.name))
      .map(describe)
      .join("; ");
    said.push(`The page cannot show it a text: ${noText}. It returns ${outputs}.`);
  } else {
    if (weights === undefined) {
      said.push(
        "There is no picture of its attention: it does not return its attention weights as " +
          "(layers, batch, heads, seq, seq).",
      );
    }
    if (noContinuation !== undefined) said.push(`It does not continue a text: ${noContinuation}.`);
  }
  return new ShownModel(
    ort,
    name,
    tokenizer,
    weights && bundle,
    noContinuation === undefined ? bundle : undefined,
    said,
  );
}
