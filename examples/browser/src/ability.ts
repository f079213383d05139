// What a page can show of a model, by its contract.

import type { Bundle, Spec } from "../../node/src/bundle.js";

/** Why the page cannot give text to a model; undefined where it can. */
export function whyNoText({ inputs }: Bundle): string | undefined {
  const [input, ...others] = inputs;
  const takesIds = input?.dtype === "int64" && input.axes.length === 2 && input.vocab_size !== null;
  if (takesIds && others.length === 0) return undefined;
  return `it takes ${inputs.map(describe).join("; ")}, and not token ids alone`;
}

/** Why a model cannot continue a text; undefined where it can. */
export function whyNoContinuation(bundle: Bundle): string | undefined {
  const { cache, outputs, min_seq_len: least } = bundle.contract;
  if (cache.length === 0) return "it has no key-value cache";
  if (cache.some((pair) => pair.bounded)) {
    return "its cache keeps a window of positions, which this page does not do";
  }
  const logits = outputs.find((spec) => spec.name === "logits");
  if (logits?.dtype !== "float32") return "it returns no logits in float32";
  if (least !== undefined && least > 1) return `it takes no sequence shorter than ${least}`;
  return undefined;
}

/** The output that holds attention weights, (layers, batch, heads, seq, seq); undefined without one. */
export function weightsOf({ contract }: Bundle): Spec | undefined {
  return contract.outputs.find(
    ({ dtype, axes }) =>
      dtype === "float32" && axes.length === 5 && axes[3] === "seq" && axes[4] === "seq",
  );
}

/** An input or output in words. */
export function describe({ name, dtype, axes }: Spec): string {
  return `${name}: ${dtype} [${axes.join(", ")}]`;
}
