// Choose a layer, a head and a position; the map, the passage and a sentence follow.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const bytes = Uint8Array.from(atob(data.weights), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const seq = data.passage.length;
  const perMap = (seq * (seq + 1)) / 2;

  const byId = (id) => document.getElementById(id);
  const map = byId("map");
  const slider = byId("position");
  const passage = [...byId("passage").children];
  const buttons = [...document.querySelectorAll(".heads button")];
  const rowLabels = [...map.querySelectorAll(".at-row")];
  const columnLabels = [...map.querySelectorAll(".at-column")];
  const state = { layer: 0, head: 0, row: seq - 1, column: null };

  const weight = (row, column) => {
    const index = (state.layer * data.heads + state.head) * perMap + (row * (row + 1)) / 2 + column;
    return view.getUint16(2 * index, true) / 65535;
  };
  const quoted = (i) => (data.passage[i] === " " ? "the space" : `“${data.passage[i]}”`);
  const percent = (w) => (w >= 0.0995 ? `${(100 * w).toFixed(0)} %` : `${(100 * w).toFixed(1)} %`);
  const mark = (id, x, y, width) => {
    const rect = byId(id);
    rect.setAttribute("x", x);
    rect.setAttribute("y", y);
    rect.setAttribute("width", width);
    rect.style.visibility = "visible";
  };

  const strongest = () => {
    const columns = [...Array(state.row + 1).keys()];
    columns.sort((a, b) => weight(state.row, b) - weight(state.row, a));
    return columns.slice(0, 3).filter((column) => weight(state.row, column) >= 0.005);
  };

  const sentence = () => {
    const at = `Layer ${state.layer + 1}, head ${state.head + 1}. ${quoted(state.row)} at ${state.row + 1}`;
    if (state.column !== null && state.column > state.row) {
      return `${at} cannot look at position ${state.column + 1}: it lies in the future, weight 0.`;
    }
    if (state.column !== null) {
      const w = percent(weight(state.row, state.column));
      return `${at} gives ${w} of its attention to ${quoted(state.column)} at ${state.column + 1}.`;
    }
    const parts = strongest().map(
      (c) => `${c === state.row ? "itself" : `${quoted(c)} at ${c + 1}`} (${percent(weight(state.row, c))})`
    );
    return `${at} looks mostly at ${parts.join(", ")}.`;
  };

  const show = () => {
    byId("shown-cells").setAttribute("href", `#cells-${state.layer}-${state.head}`);
    for (const button of buttons) {
      const chosen = +button.dataset.layer === state.layer && +button.dataset.head === state.head;
      button.setAttribute("aria-pressed", chosen);
    }
    passage.forEach((span, i) => {
      const w = i <= state.row ? weight(state.row, i) : 0;
      span.style.setProperty("--weight", Math.sqrt(w));
      span.className = i > state.row ? "ahead" : w > 0.4 ? "strong" : "";
      if (i === state.row) span.classList.add("now");
    });
    rowLabels.forEach((label, i) => label.classList.toggle("now", i === state.row));
    columnLabels.forEach((label, i) => label.classList.toggle("now", i === state.column));
    mark("row-mark", 0, state.row, state.row + 1);
    if (state.column === null) byId("cell-mark").style.visibility = "hidden";
    else mark("cell-mark", state.column, state.row, 1);
    slider.value = state.row;
    slider.setAttribute("aria-valuetext", `${state.row + 1}, ${quoted(state.row)}`);
    byId("readout").textContent = sentence();
  };
  const set = (change) => {
    Object.assign(state, change);
    show();
  };

  for (const button of buttons) {
    button.addEventListener("click", () =>
      set({ layer: +button.dataset.layer, head: +button.dataset.head, column: null })
    );
  }
  slider.addEventListener("input", () => set({ row: +slider.value, column: null }));
  passage.forEach((span, i) => span.addEventListener("click", () => set({ row: i, column: null })));

  const point = (event) => {
    const box = map.getBoundingClientRect();
    const units = map.viewBox.baseVal.width / box.width;
    const cell = +map.dataset.cell;
    const margin = +map.dataset.margin;
    const place = (offset) => Math.floor((offset * units - margin) / cell);
    const column = place(event.clientX - box.left);
    const row = place(event.clientY - box.top);
    if (row < 0 || column < 0 || row >= seq || column >= seq) return;
    if (row !== state.row || column !== state.column) set({ row, column });
  };
  map.addEventListener("pointermove", point);
  map.addEventListener("pointerdown", point);
  map.addEventListener("pointerleave", () => set({ column: null }));

  document.documentElement.classList.add("scripted");
  show();
})();
