// Text as the ids of a model over bytes, and back.

import type * as Ort from "onnxruntime-common";

/** Ids (1, length) of the bytes of UTF-8. */
export function makeIds(ort: typeof Ort, bytes: Uint8Array): Ort.Tensor {
  return new ort.Tensor("int64", BigInt64Array.from(bytes, BigInt), [1, bytes.length]);
}

/** How a byte is written at the side of a map. */
export function labelOf(byte: number): string {
  if (byte === 0x20) return "␣";
  if (byte === 0x0a) return "⏎";
  return byte > 0x20 && byte < 0x7f ? String.fromCharCode(byte) : "·";
}

/** How a byte is called in a sentence. */
export function nameOf(byte: number): string {
  if (byte === 0x20) return "space";
  if (byte === 0x0a) return "line break";
  return byte > 0x20 && byte < 0x7f ? `“${String.fromCharCode(byte)}”` : `byte ${byte}`;
}
