// The page of a server: a client like any other, of the paths that docs/serving.md lists.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

  // ---- the server ----------------------------------------------------------------------------

  let key = "";
  let models = [];

  class Refused extends Error {
    constructor(message, status, retryAfter) {
      super(message);
      this.status = status;
      this.retryAfter = retryAfter;
    }
  }

  /** An answer of the server; paths are relative, so that it may stand behind a prefix. */
  async function ask(path, body, signal) {
    const headers = {};
    if (key !== "") headers["authorization"] = `Bearer ${key}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    const answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
    if (answer.ok) return answer;
    if (answer.status === 401) askForKey();
    const found = await answer.json().catch(() => ({}));
    const message = typeof found.error === "string" ? found.error : found.error?.message;
    const seconds = Number(answer.headers.get("retry-after")) || 0;
    throw new Refused(message ?? `${path}: ${answer.status}`, answer.status, seconds);
  }

  /** The objects that a stream of events holds, as they come. */
  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (held + value).split("\n");
      held = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue; // an empty line, or a ping
        const text = line.slice(6);
        if (text === "[DONE]") return;
        const data = JSON.parse(text);
        if (data.error !== undefined) throw new Refused(data.error.message, 200, 0);
        yield data;
      }
    }
  }

  function say(text, isWrong = false) {
    byId("status").textContent = text;
    byId("status").classList.toggle("wrong", isWrong);
  }

  function askForKey() {
    const isNew = byId("key-form").hidden;
    byId("key-form").hidden = false;
    if (isNew) byId("key").focus();
  }

  async function useKey(event) {
    event.preventDefault();
    key = byId("key").value.trim();
    byId("key").value = "";
    await start();
  }

  async function start() {
    try {
      const found = await (await ask("page/models")).json();
      models = found.models;
      byId("key-form").hidden = true;
    } catch (error) {
      say(error.message, true);
      return;
    }
    say(models.length === 0 ? "This server has no models now." : "");
    fillModels();
    document.body.dataset.ready = "";
    void watch();
  }

  // ---- the models ----------------------------------------------------------------------------

  const TAKES = { chat: "chats and texts", text: "texts", ids: "token ids", tensors: "tensors" };

  const chosen = () => models.find((model) => model.name === byId("model").value);

  function fillModels() {
    const options = models.map((model) => new Option(model.name, model.name));
    byId("model").replaceChildren(...options);
    byId("model").disabled = models.length === 0;
    // What converses is what most people come for.
    const best = ["chat", "text", "ids"].map((kind) => models.find((model) => model.kind === kind));
    byId("model").value = (best.find(Boolean) ?? models[0])?.name ?? "";
    byId("models").replaceChildren(...models.map(row));
    choose();
  }

  function row(model) {
    const line = document.createElement("tr");
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = model.name;
    const maps = model.attention;
    const cells = [
      TAKES[model.kind] + (model.texts && model.kind === "tensors" ? ", of texts" : ""),
      model.positions ?? "any",
      `${model.device}, ${model.threads} thread${model.threads === 1 ? "" : "s"}`,
      maps === null ? "no" : `${maps.layers} × ${maps.heads}`,
    ].map((text) => Object.assign(document.createElement("td"), { textContent: text }));
    line.append(name, ...cells);
    return line;
  }

  function choose() {
    const model = chosen();
    reset();
    if (model === undefined) return;
    const isChat = model.kind === "chat";
    const writes = model.kind !== "tensors";
    const reads = writes || model.attention !== null;
    byId("talk-title").textContent = isChat ? "Chat" : "Text";
    byId("text-label").textContent = isChat
      ? "Your message"
      : model.texts
        ? "Your text"
        : "Your token ids, with spaces between them";
    byId("send").textContent = isChat ? "Send" : "Continue";
    byId("new").textContent = isChat ? "New conversation" : "New text";
    byId("form").hidden = !reads;
    for (const id of ["actions", "options"]) byId(id).hidden = !writes;
    byId("system-field").hidden = !isChat;
    byId("text").disabled = !reads;
    byId("text-note").textContent = isChat ? "Enter sends, Shift+Enter begins a new line." : "";
    byId("talk-note").hidden = writes;
    byId("talk-note").textContent = reads
      ? "This model has no KV cache, so the server continues nothing with it; what you type is drawn."
      : "This model takes tensors: ask v2/models/NAME/infer, as docs/serving.md shows.";
    fillMapModels(model);
    setGoing(null);
  }

  // ---- chat and text -------------------------------------------------------------------------

  /** What was said; of a text that is continued, the one prompt and what came of it. */
  let messages = [];
  let going = null;

  function reset() {
    going?.abort();
    going = null;
    messages = [];
    byId("messages").replaceChildren();
    byId("messages").hidden = true;
    byId("continuation").replaceChildren();
    byId("continuation").hidden = true;
    byId("figures").textContent = "";
    byId("text").value = "";
    clearMap();
  }

  function setGoing(controller) {
    going = controller;
    const isGoing = controller !== null;
    byId("stop").disabled = !isGoing;
    byId("send").disabled = isGoing || byId("text").value.trim() === "";
    byId("new").disabled = messages.length === 0;
    byId("model").disabled = isGoing || models.length === 0;
    byId("messages").setAttribute("aria-busy", String(isGoing));
    byId("continuation").setAttribute("aria-busy", String(isGoing));
    byId("continuation").classList.toggle("going", isGoing);
    for (const item of byId("messages").children) {
      item.classList.toggle("going", isGoing && item === byId("messages").lastElementChild);
    }
  }

  function idsOf(text) {
    const words = text.split(/[\s,]+/).filter(Boolean);
    const wrong = words.find((word) => !/^\d+$/.test(word));
    if (wrong !== undefined) throw new Error(`${wrong} is no token id: ids are whole numbers`);
    return words.map(Number);
  }

  function options() {
    const found = {};
    for (const [id, name] of [
      ["max-tokens", "max_tokens"],
      ["temperature", "temperature"],
      ["seed", "seed"],
    ]) {
      const text = byId(id).value.trim();
      if (text !== "") found[name] = Number(text);
    }
    return found;
  }

  async function send(event) {
    event.preventDefault();
    const model = chosen();
    const text = byId("text").value;
    if (going !== null || model === undefined || text.trim() === "") return;
    const controller = new AbortController();
    try {
      const isChat = model.kind === "chat";
      const body = { model: model.name, stream: true, stream_options: { include_usage: true } };
      Object.assign(body, options());
      if (isChat) {
        messages.push({ role: "user", content: text });
        const system = byId("system").value.trim();
        const first = system === "" ? [] : [{ role: "system", content: system }];
        body.messages = [...first, ...messages];
        byId("text").value = "";
        show(messages.at(-1));
      } else {
        body.prompt = model.texts ? text : idsOf(text);
        messages = [{ role: "user", content: text }];
        byId("continuation").replaceChildren(bit("given", text), bit("new", ""));
        byId("continuation").hidden = false;
      }
      const reply = { role: "assistant", content: "" };
      messages.push(reply);
      const place = isChat ? show(reply) : byId("continuation").lastElementChild;
      setGoing(controller);
      await stream(isChat ? "v1/chat/completions" : "v1/completions", body, reply, place);
    } catch (error) {
      if (error.name !== "AbortError") say(error.message, true);
    } finally {
      if (going === controller) {
        settle(model);
        setGoing(null);
        byId("text").focus();
      }
      drawSoon();
    }
  }

  /** What was asked and not answered does not stay in the conversation; the text can be sent again. */
  function settle(model) {
    if (messages.at(-1)?.content !== "" || messages.length < 2) return;
    if (model.kind !== "chat") return;
    const [asked] = messages.splice(-2);
    for (let count = 0; count < 2; count++) byId("messages").lastElementChild.remove();
    if (byId("text").value === "") byId("text").value = asked.content;
    byId("messages").hidden = messages.length === 0;
  }

  async function stream(path, body, reply, place) {
    const controller = going;
    const began = performance.now();
    let first = null;
    let finish = null;
    say("");
    const answer = await ask(path, body, controller.signal);
    for await (const data of events(answer)) {
      if (going !== controller) return;
      const [choice] = data.choices;
      if (choice === undefined) {
        showFigures(data.usage, began, first, finish);
        continue;
      }
      finish = choice.finish_reason ?? finish;
      const ids = chosen().texts ? undefined : choice.token_ids;
      const text = ids ? ids.map((id) => ` ${id}`).join("") : (choice.delta?.content ?? choice.text);
      if (!text) continue;
      first ??= performance.now();
      reply.content += text;
      const scrolls = place.closest("#messages, #continuation");
      const isAtEnd = scrolls.scrollHeight - scrolls.scrollTop - scrolls.clientHeight < 40;
      place.append(text);
      if (isAtEnd) scrolls.scrollTop = scrolls.scrollHeight;
      drawSoon();
    }
  }

  function showFigures(usage, began, first, finish) {
    const ended = performance.now();
    const count = usage.completion_tokens;
    const parts = [
      `${usage.prompt_tokens} tokens read, ${usage.prompt_tokens_details.cached_tokens} of them found in the cache`,
      `${count} written`,
    ];
    if (first !== null) parts.push(`first token after ${Math.round(first - began)} ms`);
    // What came all at once, from a proxy or a busy tab, says nothing of speed.
    if (count > 1 && ended - first > 100) {
      parts.push(`${number(((count - 1) * 1000) / (ended - first))} tokens per second`);
    }
    if (finish === "length") parts.push("ended at the limit of new tokens or positions");
    byId("figures").textContent = parts.join(" · ");
  }

  function bit(name, text) {
    return Object.assign(document.createElement("span"), { className: name, textContent: text });
  }

  function show(message) {
    const place = document.createElement("p");
    place.className = `message ${message.role}`;
    place.dataset.by = message.role === "user" ? "You" : chosen().name;
    place.textContent = message.content;
    byId("messages").hidden = false;
    byId("messages").append(place);
    byId("messages").scrollTop = byId("messages").scrollHeight;
    return place;
  }

  // ---- queue and speed -----------------------------------------------------------------------

  const PREFIX = "causal_onnx:";
  const KEPT_MS = 120_000;
  const history = [];
  let watching = false;

  /** Ask again and again: each second while something is written, else now and then. */
  async function watch() {
    if (watching) return;
    watching = true;
    for (;;) {
      let wait = 0;
      if (!document.hidden) {
        try {
          readMetrics(await (await ask("metrics")).text());
          byId("speed-note").classList.remove("wrong");
        } catch (error) {
          if (error.status === 401) break;
          byId("speed-note").textContent = `The server does not answer: ${error.message}`;
          byId("speed-note").classList.add("wrong");
          wait = (error.retryAfter ?? 0) * 1000;
        }
      }
      for (let turn = 0; turn < 5; turn++) {
        await sleep(Math.max(1000, wait / 5));
        if (going !== null && wait === 0) break;
      }
    }
    watching = false;
  }

  function sum(text, name) {
    let found = 0;
    for (const line of text.split("\n")) {
      if (line.startsWith(`${PREFIX}${name}{`)) found += Number(line.slice(line.lastIndexOf(" ")));
    }
    return found;
  }

  function readMetrics(text) {
    const now = performance.now();
    const written = sum(text, "generation_tokens_total");
    const before = history.at(-1);
    const speed =
      before === undefined ? 0 : Math.max(0, written - before.written) / ((now - before.now) / 1000);
    history.push({ now, written, speed });
    while (history[0].now < now - KEPT_MS) history.shift();
    const [read, hits] = ["prefix_cache_queries_total", "prefix_cache_hits_total"].map((name) =>
      sum(text, name),
    );
    const firsts = sum(text, "time_to_first_token_seconds_count");
    const first = sum(text, "time_to_first_token_seconds_sum") / firsts;
    const engines = (text.match(new RegExp(`^${PREFIX}kv_cache_usage_perc{`, "gm")) ?? []).length;
    const usage = engines === 0 ? null : sum(text, "kv_cache_usage_perc") / engines;
    tiles([
      ["Running", sum(text, "num_requests_running")],
      ["Waiting", sum(text, "num_requests_waiting")],
      ["Tokens per second", number(speed)],
      ["Cache in use", usage === null ? "–" : percent(usage)],
      ["Tokens written", written.toLocaleString("en")],
      ["Tokens read", read.toLocaleString("en")],
      ["Found in the cache", read === 0 ? "–" : percent(hits / read)],
      ["First token, mean", firsts === 0 ? "–" : `${number(first * 1000)} ms`],
    ]);
    drawSpeed();
  }

  function tiles(pairs) {
    const place = byId("tiles");
    if (place.childElementCount !== pairs.length) {
      place.replaceChildren(
        ...pairs.map(([name]) => {
          const tile = document.createElement("div");
          const [term, value] = ["dt", "dd"].map((tag) => document.createElement(tag));
          term.textContent = name;
          tile.append(term, value);
          return tile;
        }),
      );
    }
    pairs.forEach(([, value], index) => {
      place.children[index].querySelector("dd").textContent = String(value);
    });
  }

  function drawSpeed() {
    const canvas = byId("speed");
    const { context, width, height } = sharp(canvas, canvas.clientWidth, canvas.clientHeight);
    const most = Math.max(1, ...history.map((point) => point.speed));
    const end = history.at(-1)?.now ?? 0;
    const at = ({ now, speed }) => [
      width - 2 - ((end - now) / KEPT_MS) * (width - 4),
      height - 2 - (speed / most) * (height - 6),
    ];
    context.strokeStyle = colour("line");
    context.strokeRect(0.5, 0.5, width - 1, height - 1);
    context.strokeStyle = colour("accent");
    context.lineWidth = 2;
    context.beginPath();
    history.forEach((point) => context.lineTo(...at(point)));
    context.stroke();
    byId("speed-note").textContent =
      `Tokens per second of all models in the last two minutes; the frame is ${number(most)} high.`;
  }

  const number = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
  const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

  // ---- the attention map ---------------------------------------------------------------------

  /** Tokens of a map: it costs the server their square, and nobody reads more of them. */
  const MOST_TOKENS = 128;
  const MOST_NUMBERS = 1 << 21;
  /** Between two maps of a text that grows. */
  const REST_MS = 1000;

  let shown = null;
  let layer = 0;
  let head = 0;
  let marked = [0, 0];
  let frame = { left: 0, top: 0, cell: 1 };
  let drawing = false;
  let again = false;

  const mapModel = () => models.find((model) => model.name === byId("map-model").value);

  function fillMapModels(model) {
    const fitting = models.filter(
      (item) => item.attention !== null && item.texts === model.texts,
    );
    const options = fitting.map((item) => new Option(item.name, item.name));
    byId("map-model").replaceChildren(...options);
    if (model.attention !== null) byId("map-model").value = model.name;
    byId("map-body").hidden = fitting.length === 0;
    byId("map-note").textContent = mapNote(model, fitting);
  }

  function mapNote(model, fitting) {
    if (model.attention !== null) return "Each row is a token. The stronger the colour of a cell, the more its row's token attends to its column's.";
    const why = `No map of ${model.name}: ${model.no_attention}`;
    if (fitting.length === 0) return why;
    return `${why} The map below is drawn by another model of this server, which reads the same text.`;
  }

  function clearMap() {
    shown = null;
    byId("map-title").hidden = true;
    byId("map").hidden = true;
    byId("map-keys").hidden = true;
    byId("heads").replaceChildren();
    byId("cell").textContent = "Write something, and its map is drawn here.";
    delete document.body.dataset.map;
  }

  /** The text as it is now, or what is typed where nothing was sent. */
  function textOfMap() {
    const said = messages.map((message) => message.content);
    if (said.length === 0) return byId("text").value;
    return chosen().kind === "chat" ? said.join("\n") : said.join("");
  }

  async function readIds(model) {
    const text = textOfMap();
    if (!model.texts) {
      const ids = idsOf(text);
      return { ids, labels: ids.map(String) };
    }
    const asked = { model: model.name, return_token_strs: true };
    if (model.kind === "chat" && messages.length > 0) asked.messages = messages;
    else asked.prompt = text;
    const found = await (await ask("tokenize", asked)).json();
    return { ids: found.tokens, labels: found.token_strs };
  }

  /** Draw the map of the text soon; while one is made, later texts wait, and the last counts. */
  async function drawSoon() {
    if (drawing) {
      again = true;
      return;
    }
    drawing = true;
    do {
      again = false;
      let rest = 0;
      try {
        rest = await readMap();
      } catch (error) {
        byId("cell").textContent = error.message;
        rest = Math.max(REST_MS, (error.retryAfter ?? 0) * 1000);
      }
      if (rest > 0) await sleep(rest);
    } while (again);
    drawing = false;
  }

  async function readMap() {
    const model = mapModel();
    if (model === undefined || byId("map-body").hidden) return 0;
    if (textOfMap().trim() === "") {
      clearMap();
      return 0;
    }
    const began = performance.now();
    const { ids, labels } = await readIds(model);
    const { input, outputs, layers, heads } = model.attention;
    const most = Math.min(
      MOST_TOKENS,
      Math.floor(Math.sqrt(MOST_NUMBERS / (layers * heads))),
      model.positions ?? MOST_TOKENS,
    );
    const used = ids.slice(-most);
    if (used.length === 0) return 0;
    const answer = await ask(`v2/models/${encodeURIComponent(model.name)}/infer`, {
      inputs: [{ ...input, shape: [1, used.length], data: used }],
      outputs: outputs.map((name) => ({ name, parameters: { binary_data: true } })),
    });
    const weights = await readWeights(answer, layers * heads, used.length);
    if (mapModel() !== model) return 0;
    shown = new Maps(weights, layers, heads, used.length, labels.slice(-most), ids.length);
    marked = [used.length - 1, used.length - 1];
    [layer, head] = [Math.min(layer, layers - 1), Math.min(head, heads - 1)];
    draw();
    const took = performance.now() - began;
    // Maps of a text that the server is writing take a third of its time at most.
    return going === null ? took : Math.max(REST_MS, 2 * took);
  }

  async function readWeights(answer, maps, length) {
    const bytes = await answer.arrayBuffer();
    const start = Number(answer.headers.get("inference-header-content-length"));
    const said = JSON.parse(new TextDecoder().decode(bytes.slice(0, start)));
    const found = new Float32Array(maps * length * length);
    let [place, from] = [start, 0];
    for (const output of said.outputs) {
      const size = output.parameters.binary_data_size;
      const numbers = new Float32Array(bytes.slice(place, place + size));
      found.set(numbers, from);
      place += size;
      from += numbers.length;
    }
    if (from !== found.length) throw new Error("the weights are not of the shape that was stated");
    return found;
  }

  class Maps {
    constructor(weights, layers, heads, length, labels, whole) {
      Object.assign(this, { weights, layers, heads, length, labels, whole });
    }

    at(layer, head, row, column) {
      const map = layer * this.heads + head;
      return this.weights[(map * this.length + row) * this.length + column];
    }

    /** Entries above the diagonals that are not exactly 0, and how far a row's sum is from 1. */
    check() {
      let [above, off] = [0, 0];
      for (let start = 0; start < this.weights.length; start += this.length) {
        const row = (start / this.length) % this.length;
        let sum = 0;
        for (let column = 0; column < this.length; column++) {
          const weight = this.weights[start + column];
          sum += weight;
          if (column > row && weight !== 0) above++;
        }
        off = Math.max(off, Math.abs(sum - 1));
      }
      return { above, off };
    }
  }

  function draw() {
    if (shown === null) return;
    for (const id of ["map-title", "map", "map-keys"]) byId(id).hidden = false;
    const ramp = makeRamp();
    if (byId("heads").childElementCount !== shown.layers * shown.heads) makeButtons();
    for (const button of byId("heads").children) {
      const [l, h] = [Number(button.dataset.layer), Number(button.dataset.head)];
      button.setAttribute("aria-pressed", String(l === layer && h === head));
      paint(button.querySelector("canvas"), l, h, ramp);
    }
    drawSelected();
    const { above, off } = shown.check();
    const part =
      shown.whole > shown.length
        ? `The last ${shown.length} of ${shown.whole} tokens, read by themselves. `
        : `${shown.length} tokens. `;
    const sums = off > 0.01 ? ` Its rows do not sum to 1: they are off by up to ${off.toFixed(2)}.` : "";
    byId("map-keys").textContent =
      `${part}${above} entries above the diagonals differ from 0.${sums} Point at a cell, or focus ` +
      "the map and use the arrow keys; Home and End go to the ends of a row.";
    Object.assign(document.body.dataset, { map: shown.length, above });
  }

  /** 256 colours from paper to ink, of which small weights have their share, and that of nothing. */
  function makeRamp() {
    const [paper, ink, nothing] = ["paper", "ink", "above"].map(rgb);
    const shades = Array.from({ length: 256 }, (_, index) => {
      const share = Math.sqrt(index / 255);
      return paper.map((value, channel) => value + (ink[channel] - value) * share);
    });
    return { shades, nothing };
  }

  /** Draw a map as one pixel per cell; the style sheet makes it larger. */
  function paint(canvas, l, h, { shades, nothing }) {
    canvas.width = canvas.height = shown.length;
    const context = canvas.getContext("2d");
    const image = context.createImageData(shown.length, shown.length);
    for (let row = 0, place = 0; row < shown.length; row++) {
      for (let column = 0; column < shown.length; column++, place += 4) {
        const weight = shown.at(l, h, row, column);
        // Above the diagonal too: what is not 0 there must show.
        const [r, g, b] =
          column > row && weight === 0
            ? nothing
            : shades[Math.min(255, Math.max(weight > 0 ? 1 : 0, Math.round(weight * 255)))];
        image.data.set([r, g, b, 255], place);
      }
    }
    context.putImageData(image, 0, 0);
  }

  const LEGIBLE = 9; // the smallest cell that has a label

  function drawSelected() {
    const canvas = byId("map");
    const { length, labels } = shown;
    const { context, width } = sharp(canvas, canvas.clientWidth, canvas.clientWidth);
    const names = labels.map(visible);
    context.font = "12px ui-monospace, monospace";
    const longest = Math.max(...names.map((name) => context.measureText(name).width));
    let margin = Math.min(longest + 8, width / 4);
    if ((width - margin) / length < LEGIBLE) margin = 0;
    frame = { left: margin, top: margin, cell: (width - margin) / length };
    const small = byId("heads").children[layer * shown.heads + head].querySelector("canvas");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, margin, margin, width - margin, width - margin);
    if (margin > 0) drawLabels(context, names, margin);
    const [row, column] = marked;
    context.strokeStyle = colour("accent");
    context.lineWidth = 2;
    context.strokeRect(margin + column * frame.cell, margin + row * frame.cell, frame.cell, frame.cell);
    byId("map-title").textContent = `Layer ${layer + 1}, head ${head + 1}`;
    canvas.setAttribute(
      "aria-label",
      `Attention map of ${length} tokens, layer ${layer + 1}, head ${head + 1}`,
    );
    const share = (100 * shown.at(layer, head, row, column)).toFixed(1);
    const [from, to] = [row, column].map((place) => `“${names[place]}” (${place + 1})`);
    byId("cell").textContent =
      column > row
        ? `${from} cannot see ${to}, which comes later: ${share} %.`
        : `${from} gives ${share} % of its attention to ${to}.`;
  }

  function drawLabels(context, names, margin) {
    context.fillStyle = colour("ink");
    context.font = `${Math.min(12, frame.cell)}px ui-monospace, monospace`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    names.forEach((name, index) => {
      const middle = margin + (index + 0.5) * frame.cell;
      context.fillText(name, margin - 4, middle, margin - 6);
      context.save();
      context.translate(middle, margin - 4);
      context.rotate(Math.PI / 2);
      context.fillText(name, 0, 0, margin - 6);
      context.restore();
    });
  }

  const visible = (label) => label.replaceAll("\n", "⏎").replaceAll(" ", "␣").replaceAll("\t", "⇥");

  function makeButtons() {
    byId("heads").replaceChildren();
    byId("heads").style.gridTemplateColumns = `repeat(${Math.min(shown.heads, 16)}, 1fr)`;
    for (let l = 0; l < shown.layers; l++) {
      for (let h = 0; h < shown.heads; h++) {
        const button = document.createElement("button");
        button.type = "button";
        Object.assign(button.dataset, { layer: l, head: h });
        button.setAttribute("aria-label", `Layer ${l + 1}, head ${h + 1}`);
        button.append(document.createElement("canvas"), `${l + 1}.${h + 1}`);
        button.addEventListener("click", () => {
          [layer, head] = [l, h];
          draw();
        });
        byId("heads").append(button);
      }
    }
  }

  function mark(row, column) {
    if (shown === null) return;
    const last = shown.length - 1;
    marked = [row, column].map((place) => Math.min(Math.max(place, 0), last));
    drawSelected();
  }

  function moveByKey(event) {
    const [row, column] = marked;
    const moves = {
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

  const point = ({ offsetX, offsetY }) =>
    mark(
      Math.floor((offsetY - frame.top) / frame.cell),
      Math.floor((offsetX - frame.left) / frame.cell),
    );

  // ---- drawing -------------------------------------------------------------------------------

  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function rgb(name) {
    const context = new OffscreenCanvas(1, 1).getContext("2d");
    context.fillStyle = colour(name);
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  }

  /** An empty canvas of so many CSS pixels, as sharp as the screen. */
  function sharp(canvas, width, height) {
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    return { context, width, height };
  }

  let lastWidth = 0;

  /** Draw again where the width or the colours are others; the page grows with every token. */
  function redraw({ always = false } = {}) {
    if (!always && document.body.clientWidth === lastWidth) return;
    lastWidth = document.body.clientWidth;
    draw();
    if (history.length > 0) drawSpeed();
  }

  // ---- what people do ------------------------------------------------------------------------

  byId("key-form").addEventListener("submit", (event) => void useKey(event));
  byId("model").addEventListener("change", choose);
  byId("form").addEventListener("submit", (event) => void send(event));
  byId("stop").addEventListener("click", () => going?.abort());
  byId("new").addEventListener("click", () => {
    reset();
    setGoing(null);
    byId("text").focus();
  });
  byId("text").addEventListener("input", () => {
    setGoing(going);
    if (messages.length === 0) void drawSoon();
  });
  byId("text").addEventListener("keydown", (event) => {
    const isSent = event.key === "Enter" && !event.shiftKey && !event.isComposing;
    if (!isSent || (chosen()?.kind !== "chat" && !event.ctrlKey && !event.metaKey)) return;
    event.preventDefault();
    void send(event);
  });
  byId("map-model").addEventListener("change", () => {
    clearMap();
    void drawSoon();
  });
  byId("map").addEventListener("keydown", moveByKey);
  for (const event of ["pointermove", "pointerdown"]) byId("map").addEventListener(event, point);
  new ResizeObserver(() => redraw()).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw({ always: true }));
  void start();
})();
