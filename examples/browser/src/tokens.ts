// How tokens are written beside a map and called in a sentence.

import type { TextTokenizer } from "./load.js";

/** A token of the text. */
export interface Token {
  /** One character, for the sides of a map. */
  readonly label: string;
  /** What it is called in a sentence. */
  readonly name: string;
}

/** The token of an id. */
export function tokenOf(tokenizer: TextTokenizer, id: number): Token {
  const text = tokenizer.decode([id], {
    skip_special_tokens: false,
    clean_up_tokenization_spaces: false,
  });
  if (text === " ") return { label: "␣", name: "space" };
  if (text === "\n") return { label: "⏎", name: "line break" };
  // A part of a character, or nothing that is seen.
  if (text.includes("\u{fffd}") || text.trim() === "") return { label: "·", name: `token ${id}` };
  return { label: [...text.trim()][0]!, name: `“${text}”` };
}
