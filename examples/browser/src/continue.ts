// continue.html?model=NAME: continue a text with the model whose folder is served at bundles/NAME/.

import { Stream } from "../../node/src/bundle.js";
import { choose } from "../../node/src/choose.js";
import { decode, TextStream } from "../../node/src/text.js";
import { hasWebGpu, loadBundle, loadTokenizer, openRuntime, type Provider } from "./load.js";

const text = element<HTMLTextAreaElement>("text");
const status = element("status");
const continueButton = element<HTMLButtonElement>("continue");
const stopButton = element<HTMLButtonElement>("stop");
const temperature = element<HTMLInputElement>("temperature");
const continuation = element("continuation");

let stopped = true;

function setStopped(value: boolean): void {
  stopped = value;
  stopButton.disabled = value;
  continueButton.disabled = !value;
  continuation.setAttribute("aria-busy", String(!value));
}

function showError(error: unknown): void {
  status.textContent = String(error);
  status.classList.add("wrong");
}

function element<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

async function start(): Promise<void> {
  const asked = new URLSearchParams(location.search);
  const provider: Provider =
    asked.get("provider") === "webgpu" && (await hasWebGpu()) ? "webgpu" : "wasm";
  const url = `bundles/${encodeURIComponent(asked.get("model") ?? "model")}/`;
  const ort = await openRuntime(provider);
  const bundle = await loadBundle(ort, url, provider);
  const tokenizer = await loadTokenizer(url);
  const { contract } = bundle;
  const [input, ...others] = bundle.inputs;
  if (input === undefined || others.length > 0 || contract.cache.length === 0) {
    throw new Error(`${url} is no language model with a cache`);
  }
  const most = contract.max_seq_len ?? Infinity;
  const ends = new Set(contract.eos_token_ids ?? []);

  async function goOn(): Promise<void> {
    setStopped(false);
    const { ids } = tokenizer.encode(text.value);
    if (ids.length > most) throw new RangeError(`${ids.length} tokens, expected at most ${most}`);
    const stream = new Stream(bundle);
    const pieces = new TextStream(tokenizer, ids);
    continuation.textContent = decode(tokenizer, ids);
    const begun = performance.now();
    let count = 0;
    let next = ids;
    while (!stopped && !(count > 0 && ends.has(next[0]!)) && stream.length + next.length <= most) {
      const data = BigInt64Array.from(next, BigInt);
      const tensor = new ort.Tensor("int64", data, [1, next.length]);
      const { logits } = await stream.read({ [input!.name]: tensor });
      const last = (logits!.data as Float32Array).slice(-logits!.dims[2]!);
      next = [choose(last, Number(temperature.value) || 0, Math.random())];
      count++;
      continuation.textContent += pieces.push(next[0]!, stream.length === most);
      const seconds = (performance.now() - begun) / 1000;
      status.textContent = `${count} tokens, ${(count / seconds).toFixed(0)} a second, with ${provider}.`;
      // Else the tab would show nothing until the end.
      await new Promise((resolve) => setTimeout(resolve));
    }
    setStopped(true);
  }

  continueButton.addEventListener("click", () =>
    void goOn().catch((error: unknown) => {
      setStopped(true);
      showError(error);
    }),
  );
  stopButton.addEventListener("click", () => (stopped = true));
  text.disabled = false;
  continueButton.disabled = false;
  status.textContent = "Ready.";
  document.body.dataset["ready"] = "";
}

start().catch(showError);
