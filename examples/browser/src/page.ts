// The page: the attention maps of the typed text, and how a model continues it. The model is the example,
// one of the server's (?model=NAME), or the folder that a person chooses or drops.

import { chosenFolder, droppedFolder, type Folder } from "./folder.js";
import { hasWebGpu, openRuntime, type Provider } from "./load.js";
import { AttentionMaps, drawLarge, drawSmall, type Colours, type Frame } from "./maps.js";
import { loadExample, loadOwn, loadServed, type Engine, type ShownModel } from "./model.js";
import { gradient } from "./scale.js";
import { tokenOf, type Token } from "./tokens.js";

const text = element<HTMLTextAreaElement>("text");
const length = element("length");
const heads = element("heads");
const canvas = element<HTMLCanvasElement>("map");
const cell = element("cell");
const status = element("status");
const folderInput = element<HTMLInputElement>("folder");
const folderStatus = element("folder-status");
const exampleButton = element<HTMLButtonElement>("example");
const continueButton = element<HTMLButtonElement>("continue");
const stopButton = element<HTMLButtonElement>("stop");
const temperature = element<HTMLInputElement>("temperature");
const continuation = element("continuation");

let engine: Engine;
let example: ShownModel | undefined;
let model: ShownModel | undefined;
let ids: readonly number[] = [];
let shown: { tokens: readonly Token[]; maps: AttentionMaps } | undefined;
let frame: Frame = { left: 0, top: 0, cell: 1 };
let layer = 0;
let head = 0;
let marked: [number, number] = [0, 0];
/** Which continuation goes on; another number stops the one before. */
let run = 0;
let goesOn = false;

/** Show a model in place of the one before. */
async function show(next: ShownModel): Promise<void> {
  stop();
  [model, shown, layer, head] = [next, undefined, 0, 0];
  heads.replaceChildren();
  continuation.replaceChildren();
  element("model-name").textContent = next.name;
  element("facts").replaceChildren(
    ...next.facts.map((fact) => Object.assign(document.createElement("li"), { textContent: fact })),
  );
  element("example-note").hidden = next !== example;
  exampleButton.hidden = example === undefined || next === example;
  element("text-part").hidden = !next.hasMaps && !next.canContinue;
  for (const part of ["heads-part", "map-part"]) element(part).hidden = !next.hasMaps;
  element("continue-part").hidden = !next.canContinue;
  text.disabled = false;
  status.textContent = "";
  status.classList.remove("wrong");
  await update();
}

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
  const reader = model!;
  const whole = reader.encode(text.value);
  ids = whole.slice(0, reader.most);
  const limit = reader.most === Infinity ? "" : ` of ${reader.most}`;
  const cut = whole.length > ids.length ? `; only the first ${reader.most} are read` : "";
  length.textContent = `${whole.length}${limit} tokens${cut}`;
  length.classList.toggle("wrong", cut !== "");
  setStopped(!goesOn);
  if (ids.length === 0) {
    cell.textContent = "Type something.";
    return;
  }
  if (!reader.hasMaps) return;
  const start = performance.now();
  const maps = await reader.maps(ids);
  if (reader !== model) return;
  const took = performance.now() - start;
  shown = { tokens: ids.map((id) => tokenOf(reader.tokenizer!, id)), maps };
  marked = [maps.length - 1, maps.length - 1];
  draw();
  const above = maps.countAboveDiagonal();
  document.body.dataset["above"] = String(above);
  document.body.dataset["length"] = String(maps.length);
  status.textContent =
    `${took.toFixed(0)} ms in this tab, with ${engine.provider}. ` +
    (above === 0
      ? "Every entry above the diagonals is exactly 0."
      : `Above the diagonals, ${above} ${above === 1 ? "entry is" : "entries are"} not 0: tokens see later ones.`);
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
  const { tokens, maps } = shown!;
  element("map-title").textContent = `Layer ${layer + 1}, head ${head + 1}`;
  const labels = tokens.map((token) => token.label);
  frame = drawLarge(canvas, maps, layer, head, labels, marked, colours);
  const [row, column] = marked;
  const share = (100 * maps.at(layer, head, row, column)).toFixed(1);
  const [from, to] = [tokens[row]!.name, tokens[column]!.name];
  cell.textContent =
    column > row
      ? `${from} (${row + 1}) cannot see ${to} (${column + 1}), which comes later.`
      : `${from} (${row + 1}) gives ${share} % of its attention to ${to} (${column + 1}).`;
  canvas.setAttribute(
    "aria-label",
    `Attention map of ${tokens.length} tokens, layer ${layer + 1}, head ${head + 1}`,
  );
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

async function continueText(): Promise<void> {
  const mine = ++run;
  goesOn = true;
  setStopped(false);
  status.classList.remove("wrong");
  const given = Object.assign(document.createElement("b"), { textContent: text.value });
  const added = document.createElement("span");
  continuation.replaceChildren(given, added);
  const begun = performance.now();
  let count = 0;
  try {
    for await (const piece of model!.continue(ids, () => Number(temperature.value) || 0)) {
      if (mine !== run) return;
      added.textContent += piece;
      count++;
      const rate = count / ((performance.now() - begun) / 1000);
      status.textContent =
        `${count} ${count === 1 ? "token" : "tokens"}, ${rate.toFixed(0)} a second, in this tab, ` +
        `with ${engine.provider}.`;
      // Else the tab would show nothing until the end.
      await new Promise((resolve) => setTimeout(resolve));
    }
  } catch (error) {
    if (mine === run) showError(error);
  }
  if (mine === run) stop();
}

function stop(): void {
  run++;
  goesOn = false;
  setStopped(true);
}

function setStopped(stopped: boolean): void {
  stopButton.disabled = stopped;
  const full = ids.length === 0 || ids.length >= (model?.most ?? 0);
  continueButton.disabled = !stopped || full;
  continuation.setAttribute("aria-busy", String(!stopped));
}

/** Show a folder of this machine, or say what is wrong with it and keep the model that is shown. */
let opening = 0;
async function open(chosen: Promise<Folder>): Promise<void> {
  const mine = ++opening;
  const say = (words: string, isWrong = false) => {
    if (mine !== opening) return;
    folderStatus.textContent = words;
    folderStatus.classList.toggle("wrong", isWrong);
  };
  try {
    const own = await loadOwn(engine, await chosen, say);
    if (mine !== opening) return; // another was chosen meanwhile
    await show(own);
    say("");
    document.body.dataset["opened"] = String(mine);
  } catch (error) {
    const kept = model === undefined ? "" : ` The page still shows ${model.name}.`;
    say((error instanceof Error ? error.message : String(error)) + kept, true);
    document.body.dataset["opened"] = String(mine);
  }
}

function acceptFolders(): void {
  folderInput.disabled = false;
  folderInput.addEventListener("change", () => {
    const folder = chosenFolder(folderInput.files ?? []);
    folderInput.value = ""; // so that the same folder can be chosen again
    if (folder !== undefined) void open(Promise.resolve(folder));
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragged");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dragged");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragged");
    if (event.dataTransfer) void open(droppedFolder(event.dataTransfer.items));
  });
  exampleButton.addEventListener("click", () => {
    opening++;
    folderStatus.textContent = "";
    void show(example!).then(() => folderInput.focus());
  });
}

function coloursOfPage(): Colours {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
  return { ink: colour("ink"), above: colour("above") };
}

function showError(error: unknown): void {
  status.textContent = error instanceof Error ? error.message : String(error);
  status.classList.add("wrong");
}

function element<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

async function start(): Promise<void> {
  const asked = new URLSearchParams(location.search);
  // For texts this short WebAssembly is quicker than the way to a graphics card and back.
  const provider: Provider =
    asked.get("provider") === "webgpu" && (await hasWebGpu()) ? "webgpu" : "wasm";
  engine = { ort: await openRuntime(provider), provider };
  element("scale").style.background = gradient();
  acceptFolders();
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
  continueButton.addEventListener("click", () => void continueText());
  stopButton.addEventListener("click", stop);
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const name = asked.get("model");
  const first = name === null ? await loadExample(engine) : await loadServed(engine, name);
  if (name === null) example = first;
  // Whoever opened a folder meanwhile keeps it.
  if (opening === 0) await show(first);
  document.body.dataset["ready"] = "";
}

start().catch((error: unknown) => {
  if (model === undefined) element("model-name").textContent = "none";
  showError(error);
  status.append(". Load a folder of your own, or let make examples write the example's.");
});
