// Text as ids and back, in Node and in browsers alike.

import { Tokenizer } from "@huggingface/tokenizers";

/** A character that lacks bytes. */
const BROKEN = "\u{fffd}";
/** Ids before the text that comes out: enough for what a decoder puts between two tokens. */
const CONTEXT = 5;

/** What tokenizer.json and tokenizer_config.json of a model's folder hold. */
export function makeTokenizer(tokenizer: object, config: object): Tokenizer {
  return new Tokenizer(tokenizer, config);
}

/** The text of ids, without special tokens. */
export function decode(tokenizer: Tokenizer, ids: number[]): string {
  return tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
}

/**
 * The text of ids that come one by one behind a prompt.
 *
 * Tokenizers like Llama's write a space at the beginning of a token, and drop it at the beginning of a
 * text. So ids are decoded together with those before them: the text of the prompt and the pieces, put
 * together, are the text of all ids. No piece ends within a character.
 */
export class TextStream {
  private readonly ids: number[];
  /** Of the ids: what is decoded begins here, and what has come out ends there. */
  private start: number;
  private shown: number;

  constructor(
    private readonly tokenizer: Tokenizer,
    prompt: readonly number[],
  ) {
    this.ids = [...prompt];
    this.shown = prompt.length;
    this.start = Math.max(0, prompt.length - CONTEXT);
  }

  /** Take the next id, and give what is now certain; at the end, `isLast` gives the rest. */
  push(id: number, isLast = false): string {
    this.ids.push(id);
    return this.piece(isLast);
  }

  private piece(isLast: boolean): string {
    const before = decode(this.tokenizer, this.ids.slice(this.start, this.shown));
    const now = decode(this.tokenizer, this.ids.slice(this.start));
    if (now.endsWith(BROKEN) && !isLast) return "";
    this.start = Math.max(this.start, this.shown - CONTEXT);
    this.shown = this.ids.length;
    return now.slice(before.length);
  }
}
