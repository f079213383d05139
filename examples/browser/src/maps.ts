// Attention weights of a text, and how they are drawn.

import type { Tensor } from "onnxruntime-common";
import { colourOf } from "./scale.js";

/** The weights of every layer and head over one text. */
export class AttentionMaps {
  readonly layers: number;
  readonly heads: number;
  readonly length: number;
  private readonly weights: Float32Array;

  /** @param weights (layers, 1, heads, seq, seq) */
  constructor(weights: Tensor) {
    const [layers, , heads, length] = weights.dims as [number, number, number, number, number];
    this.layers = layers;
    this.heads = heads;
    this.length = length;
    this.weights = weights.data as Float32Array;
  }

  /** How much the token `row` attends to the token `column`. */
  at(layer: number, head: number, row: number, column: number): number {
    const map = layer * this.heads + head;
    return this.weights[(map * this.length + row) * this.length + column]!;
  }

  /** Entries above the diagonal, over all maps, that are not exactly 0. */
  countAboveDiagonal(): number {
    let found = 0;
    for (let map = 0; map < this.layers * this.heads; map++) {
      for (let row = 0; row < this.length; row++) {
        const start = (map * this.length + row) * this.length;
        for (let column = row + 1; column < this.length; column++) {
          if (this.weights[start + column] !== 0) found++;
        }
      }
    }
    return found;
  }
}

export interface Colours {
  readonly ink: string;
  /** Of the part above the diagonal. */
  readonly above: string;
}

/** Draw a map as one pixel per cell; the style sheet makes it larger. */
export function drawSmall(
  canvas: HTMLCanvasElement,
  maps: AttentionMaps,
  layer: number,
  head: number,
  colours: Colours,
): void {
  canvas.width = canvas.height = maps.length;
  const context = canvas.getContext("2d")!;
  drawCells(context, maps, layer, head, colours, { left: 0, top: 0, cell: 1 });
}

/** Where the cells of the large map are, in CSS pixels. */
export interface Frame {
  readonly left: number;
  readonly top: number;
  readonly cell: number;
}

const LABEL = 18; // room for a character beside a row or above a column
const LEGIBLE = 9; // the smallest cell that has one

/** Draw a map with the text along its sides, and one cell marked. */
export function drawLarge(
  canvas: HTMLCanvasElement,
  maps: AttentionMaps,
  layer: number,
  head: number,
  labels: readonly string[],
  marked: readonly [number, number],
  colours: Colours,
): Frame {
  const width = canvas.clientWidth;
  const scale = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(width * scale);
  const context = canvas.getContext("2d")!;
  context.scale(scale, scale);
  const labelled = (width - LABEL) / maps.length >= LEGIBLE;
  const margin = labelled ? LABEL : 0;
  const frame = { left: margin, top: margin, cell: (width - margin) / maps.length };
  drawCells(context, maps, layer, head, colours, frame);
  if (labelled) drawLabels(context, labels, colours, frame);
  const [row, column] = marked;
  // Two lines, of which one is seen on any colour.
  for (const [colour, lineWidth] of [["#fff", 4], ["#000", 2]] as const) {
    Object.assign(context, { strokeStyle: colour, lineWidth });
    context.strokeRect(frame.left + column * frame.cell, frame.top + row * frame.cell, frame.cell, frame.cell);
  }
  return frame;
}

function drawCells(
  context: CanvasRenderingContext2D,
  maps: AttentionMaps,
  layer: number,
  head: number,
  colours: Colours,
  { left, top, cell }: Frame,
): void {
  const size = cell * maps.length;
  context.fillStyle = colours.above;
  context.fillRect(left, top, size, size);
  for (let row = 0; row < maps.length; row++) {
    context.fillStyle = colourOf(0);
    context.fillRect(left, top + row * cell, (row + 1) * cell, cell);
    // Drawn up to the last column, not to the diagonal: what is not 0 there must show.
    for (let column = 0; column < maps.length; column++) {
      const weight = maps.at(layer, head, row, column);
      if (weight === 0) continue;
      context.fillStyle = colourOf(weight);
      context.fillRect(left + column * cell, top + row * cell, cell, cell);
    }
  }
}

function drawLabels(
  context: CanvasRenderingContext2D,
  labels: readonly string[],
  colours: Colours,
  { left, top, cell }: Frame,
): void {
  context.fillStyle = colours.ink;
  context.font = `${Math.min(14, cell)}px ui-monospace, monospace`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  labels.forEach((label, index) => {
    const middle = (index + 0.5) * cell;
    context.fillText(label, left / 2, top + middle);
    context.fillText(label, left + middle, top / 2);
  });
}
