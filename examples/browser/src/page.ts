// The page: the attention map of the typed text, and how the model continues it.

import type * as Ort from "onnxruntime-common";
import { Stream, type Bundle } from "../../node/src/bundle.js";
import { choose } from "../../node/src/choose.js";
import { labelOf, makeIds, nameOf } from "./bytes.js";
import { hasWebGpu, loadBundle, openRuntime, type Provider } from "./load.js";
import { AttentionMaps, drawLarge, drawSmall, type Colours, type Frame } from "./maps.js";
import { Scale } from "./scale.js";

const text = element<HTMLTextAreaElement>("text");
const length = element("length");
const heads = element("heads");
const canvas = element<HTMLCanvasElement>("map");
const cell = element("cell");
const status = element("status");
const continueButton = element<HTMLButtonElement>("continue");
const stopButton = element<HTMLButtonElement>("stop");
const temperature = element<HTMLInputElement>("temperature");
const continuation = element("continuation");

interface Models {
  readonly ort: typeof Ort;
  readonly maps: Bundle;
  readonly decoder: Bundle;
  /** The longest text, in bytes. */
  readonly most: number;
}

let models: Models;
let shown: { bytes: Uint8Array; maps: AttentionMaps } | undefined;
let frame: Frame = { left: 0, top: 0, cell: 1 };
let layer = 0;
let head = 0;
let marked: [number, number] = [0, 0];
let stopped = true;

/** Run the model over the text as it is now; while it runs, later texts wait, and the last counts. */
let running = false;
let again = false;
async function update(): Promise<void> {
  if (running) {
    again = true;
    return;
  }
  running = true;
  do {
    again = false;
    await readText().catch(showError);
  } while (again);
  running = false;
}

async function readText(): Promise<void> {
  const whole = new TextEncoder().encode(text.value);
  const bytes = whole.slice(0, models.most);
  const cut = whole.length > bytes.length ? `; only the first ${models.most} are read` : "";
  length.textContent = `${whole.length} of ${models.most} bytes${cut}`;
  length.classList.toggle("wrong", cut !== "");
  continueButton.disabled = bytes.length === 0 || bytes.length === models.most || !stopped;
  if (bytes.length === 0) {
    cell.textContent = "Type something.";
    return;
  }
  const start = performance.now();
  const outputs = await models.maps.run({ input_ids: makeIds(models.ort, bytes) });
  const took = performance.now() - start;
  const weights = Object.values(outputs).find((tensor) => tensor.dims.length === 5)!;
  shown = { bytes, maps: new AttentionMaps(weights) };
  marked = [bytes.length - 1, bytes.length - 1];
  draw();
  const above = shown.maps.countAboveDiagonal();
  document.body.dataset["above"] = String(above);
  document.body.dataset["length"] = String(bytes.length);
  status.textContent =
    `${took.toFixed(0)} ms in this tab, with ${document.body.dataset["provider"]}. ` +
    `${above} entries above the diagonals differ from 0.`;
}

function draw(): void {
  if (shown === undefined) return;
  const { maps } = shown;
  const colours = coloursOfPage();
  if (heads.childElementCount !== maps.layers * maps.heads) makeButtons(maps);
  for (const button of heads.querySelectorAll("button")) {
    const [l, h] = [Number(button.dataset["layer"]), Number(button.dataset["head"])];
    button.setAttribute("aria-pressed", String(l === layer && h === head));
    drawSmall(button.querySelector("canvas")!, maps, l, h, colours);
  }
  drawSelected(colours);
}

function drawSelected(colours: Colours = coloursOfPage()): void {
  const { bytes, maps } = shown!;
  element("map-title").textContent = `Layer ${layer + 1}, head ${head + 1}`;
  const labels = Array.from(bytes, labelOf);
  frame = drawLarge(canvas, maps, layer, head, labels, marked, colours);
  const [row, column] = marked;
  const share = (100 * maps.at(layer, head, row, column)).toFixed(1);
  const [from, to] = [nameOf(bytes[row]!), nameOf(bytes[column]!)];
  cell.textContent =
    column > row
      ? `${from} (${row + 1}) cannot see ${to} (${column + 1}), which comes later.`
      : `${from} (${row + 1}) gives ${share} % of its attention to ${to} (${column + 1}).`;
  canvas.setAttribute("aria-label", `Attention map of ${bytes.length} bytes, layer ${layer + 1}, head ${head + 1}`);
}

function makeButtons(maps: AttentionMaps): void {
  heads.replaceChildren();
  heads.style.gridTemplateColumns = `repeat(${maps.heads}, 1fr)`;
  for (let l = 0; l < maps.layers; l++) {
    for (let h = 0; h < maps.heads; h++) {
      const button = document.createElement("button");
      button.type = "button";
      Object.assign(button.dataset, { layer: l, head: h });
      button.setAttribute("aria-label", `Layer ${l + 1}, head ${h + 1}`);
      button.append(document.createElement("canvas"), `${l + 1}.${h + 1}`);
      button.addEventListener("click", () => {
        [layer, head] = [l, h];
        draw();
      });
      heads.append(button);
    }
  }
}

function mark(row: number, column: number): void {
  if (shown === undefined) return;
  const last = shown.maps.length - 1;
  marked = [Math.min(Math.max(row, 0), last), Math.min(Math.max(column, 0), last)];
  drawSelected();
}

function moveByKey(event: KeyboardEvent): void {
  const [row, column] = marked;
  const moves: Record<string, [number, number]> = {
    ArrowUp: [row - 1, column],
    ArrowDown: [row + 1, column],
    ArrowLeft: [row, column - 1],
    ArrowRight: [row, column + 1],
    Home: [row, 0],
    End: [row, Infinity],
  };
  const move = moves[event.key];
  if (move === undefined) return;
  event.preventDefault();
  mark(...move);
}

/** Read the text through the KV cache, then byte by byte what the model adds. */
async function continueText(): Promise<void> {
  const bytes = new TextEncoder().encode(text.value);
  const decoder = new TextDecoder();
  const stream = new Stream(models.decoder);
  setStopped(false);
  continuation.textContent = "";
  let next = bytes;
  while (!stopped && stream.length + next.length <= models.most) {
    const { logits } = await stream.read({ input_ids: makeIds(models.ort, next) });
    const width = logits!.dims[2]!;
    const last = (logits!.data as Float32Array).slice(-width);
    next = Uint8Array.of(choose(last, Number(temperature.value) || 0, Math.random()));
    continuation.textContent += decoder.decode(next, { stream: true });
    // Else the tab would show nothing until the end.
    await new Promise((resolve) => setTimeout(resolve));
  }
  setStopped(true);
}

function setStopped(value: boolean): void {
  stopped = value;
  stopButton.disabled = value;
  continueButton.disabled = !value;
  continuation.setAttribute("aria-busy", String(!value));
}

function coloursOfPage(): Colours {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
  const scale = new Scale(colour("least"), colour("most"));
  element("scale").style.background = scale.gradient();
  return { scale, ink: colour("ink"), accent: colour("accent"), above: colour("above") };
}

function showError(error: unknown): void {
  status.textContent = String(error);
  status.classList.add("wrong");
}

function element<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

async function start(): Promise<void> {
  const asked = new URLSearchParams(location.search).get("provider") as Provider | null;
  // For texts this short WebAssembly is quicker than the way to a graphics card and back.
  const provider = asked === "webgpu" && (await hasWebGpu()) ? "webgpu" : "wasm";
  const ort = await openRuntime(provider);
  const maps = await loadBundle(ort, "bundles/attention_maps/", provider);
  const decoder = await loadBundle(ort, "bundles/language_model/", provider);
  const most = Math.min(maps.contract.max_seq_len ?? 256, decoder.contract.max_seq_len ?? 256);
  models = { ort, maps, decoder, most };
  document.body.dataset["provider"] = provider;
  text.disabled = false;
  text.addEventListener("input", () => void update());
  canvas.addEventListener("keydown", moveByKey);
  for (const event of ["pointermove", "pointerdown"] as const) {
    canvas.addEventListener(event, ({ offsetX, offsetY }) =>
      mark(
        Math.floor((offsetY - frame.top) / frame.cell),
        Math.floor((offsetX - frame.left) / frame.cell),
      ),
    );
  }
  continueButton.addEventListener("click", () =>
    void continueText().catch((error: unknown) => {
      setStopped(true);
      showError(error);
    }),
  );
  stopButton.addEventListener("click", () => (stopped = true));
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  await update();
  document.body.dataset["ready"] = "";
}

start().catch(showError);
