// Replay a bundle's golden vectors: whole, and chunk by chunk through the cache.

import type { Tensor } from "onnxruntime-common";
import { Bundle, count, makeArray, Stream, type Spec, type Tensors } from "./bundle.js";

interface Stored {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: string;
}

interface StoredOutput extends Stored {
  readonly whole_shape: readonly number[];
  readonly stride: number;
}

interface Case {
  readonly inputs: Readonly<Record<string, Stored>>;
  readonly outputs: Readonly<Record<string, StoredOutput>>;
}

export interface Goldens {
  readonly tolerance: number;
  readonly cases: readonly Case[];
  readonly streams: readonly { case: number; chunks: readonly number[] }[];
}

export interface Report {
  readonly cases: number;
  readonly streams: number;
  /** Requests against the contract that were refused. */
  readonly refused: number;
  /** The largest, relative to each output's scale. */
  readonly error: number;
  /** Equal calls give equal bits. */
  readonly repeats: boolean;
  readonly ms_per_call: number;
  readonly passed: boolean;
}

/** Replay everything twice, and time one of the calls. */
export async function selftest(bundle: Bundle, goldens: Goldens, calls = 100): Promise<Report> {
  const { error, repeats, passed } = await replay(bundle, goldens);
  const timed = readInputs(bundle, goldens.cases[Math.min(1, goldens.cases.length - 1)]!);
  const start = performance.now();
  for (let call = 0; call < calls; call++) await bundle.run(timed);
  return {
    cases: goldens.cases.length,
    streams: goldens.streams.length,
    refused: await countRefusals(bundle, timed),
    error,
    repeats,
    ms_per_call: (performance.now() - start) / calls,
    passed,
  };
}

/** Replay the golden vectors twice, and chunk by chunk through the cache. */
export async function replay(
  bundle: Bundle,
  goldens: Goldens,
): Promise<Pick<Report, "error" | "repeats" | "passed">> {
  const inputs = goldens.cases.map((entry) => readInputs(bundle, entry));
  let error = 0;
  let repeats = true;
  for (const [index, entry] of goldens.cases.entries()) {
    const first = await bundle.run(inputs[index]!);
    const second = await bundle.run(inputs[index]!);
    repeats &&= Object.keys(first).every((name) => sameBits(first[name]!, second[name]!));
    error = Math.max(error, largestError(first, entry));
  }
  for (const plan of goldens.streams) {
    const outputs = await streamed(bundle, inputs[plan.case]!, plan.chunks);
    error = Math.max(error, largestError(outputs, goldens.cases[plan.case]!));
  }
  // Nothing to replay is nothing that passed.
  const passed = inputs.length > 0 && repeats && error <= goldens.tolerance;
  return { error, repeats, passed };
}

function readInputs(bundle: Bundle, entry: Case): Tensors {
  const tensors: Tensors = {};
  for (const [name, stored] of Object.entries(entry.inputs)) {
    tensors[name] = makeTensor(bundle, stored.dtype, values(stored), stored.shape);
  }
  return tensors;
}

function values(stored: Stored): ReturnType<typeof makeArray> {
  const text = atob(stored.data);
  const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
  return makeArray(stored.dtype, bytes.buffer);
}

function makeTensor(
  bundle: Bundle,
  dtype: string,
  data: ReturnType<typeof makeArray>,
  dims: readonly number[],
): Tensor {
  return new bundle.runtime.Tensor(dtype as Tensor.Type, data as Tensor.DataType, dims);
}

function largestError(outputs: Tensors, entry: Case): number {
  let worst = 0;
  for (const [name, stored] of Object.entries(entry.outputs)) {
    const got = outputs[name];
    if (got === undefined || got.dims.join() !== stored.whole_shape.join()) {
      throw new Error(`${name} is [${got?.dims}], expected [${stored.whole_shape}]`);
    }
    let difference = 0;
    let scale = 0;
    values(stored).forEach((expected: number | bigint, index: number) => {
      const value = Number(got.data[index * stored.stride]);
      // NaN compares as neither larger nor smaller: it must not pass as no difference.
      const here = Number.isNaN(value) ? Infinity : Math.abs(value - Number(expected));
      difference = Math.max(difference, here);
      scale = Math.max(scale, Math.abs(Number(expected)));
    });
    worst = Math.max(worst, difference === 0 ? 0 : difference / scale);
  }
  return worst;
}

async function streamed(bundle: Bundle, inputs: Tensors, chunks: readonly number[]): Promise<Tensors> {
  const stream = new Stream(bundle);
  const parts: Tensors[] = [];
  let start = 0;
  for (const length of chunks) {
    const now: Tensors = {};
    for (const spec of bundle.inputs) {
      now[spec.name] = slice(bundle, inputs[spec.name]!, seqAxis(spec), start, start + length);
    }
    parts.push(await stream.read(now));
    start += length;
  }
  const outputs: Tensors = {};
  for (const spec of bundle.contract.outputs) {
    const tensors = parts.map((part) => part[spec.name]).filter((part) => part !== undefined);
    if (tensors.length) outputs[spec.name] = concatenate(bundle, tensors, seqAxis(spec));
  }
  return outputs;
}

/** Stands for the typed array of any dtype: values are moved, not computed with. */
type Floats = Float32Array<ArrayBuffer>;

function seqAxis(spec: Spec): number {
  return spec.axes.indexOf("seq");
}

function slice(bundle: Bundle, tensor: Tensor, axis: number, start: number, end: number): Tensor {
  if (axis < 0) return tensor;
  const inner = count(tensor.dims.slice(axis + 1));
  const outer = count(tensor.dims.slice(0, axis));
  const length = (end - start) * inner;
  const whole = tensor.dims[axis]! * inner;
  const source = tensor.data as Floats;
  const target = makeArray(tensor.type, outer * length) as Floats;
  for (let row = 0; row < outer; row++) {
    const from = row * whole + start * inner;
    target.set(source.subarray(from, from + length), row * length);
  }
  return makeTensor(bundle, tensor.type, target, tensor.dims.with(axis, end - start));
}

function concatenate(bundle: Bundle, tensors: readonly Tensor[], axis: number): Tensor {
  const first = tensors[0]!;
  const total = tensors.reduce((sum, tensor) => sum + tensor.dims[axis]!, 0);
  const dims = first.dims.with(axis, total);
  const inner = count(dims.slice(axis + 1));
  const outer = count(dims.slice(0, axis));
  const target = makeArray(first.type, count(dims)) as Floats;
  let at = 0;
  for (let row = 0; row < outer; row++) {
    for (const tensor of tensors) {
      const length = tensor.dims[axis]! * inner;
      target.set((tensor.data as Floats).subarray(row * length, (row + 1) * length), at);
      at += length;
    }
  }
  return makeTensor(bundle, first.type, target, dims);
}

function sameBits(one: Tensor, other: Tensor): boolean {
  const [a, b] = [one, other].map((tensor) => {
    const { buffer, byteOffset, byteLength } = tensor.data as Floats;
    return new Uint8Array(buffer, byteOffset, byteLength);
  }) as [Uint8Array, Uint8Array];
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

/** Three requests that the contract forbids: a rank, a dtype, a length. All must be refused. */
async function countRefusals(bundle: Bundle, inputs: Tensors): Promise<number> {
  const spec = bundle.inputs[0]!;
  const good = inputs[spec.name]!;
  const axis = seqAxis(spec);
  const most = bundle.contract.max_seq_len;
  // Without a limit, no position at all is too few.
  const longer = good.dims.with(axis, most === null ? 0 : most + 1);
  const bad = [
    makeTensor(bundle, spec.dtype, makeArray(spec.dtype, good.size), [...good.dims, 1]),
    makeTensor(bundle, "uint8", makeArray("uint8", good.size), good.dims),
    makeTensor(bundle, spec.dtype, makeArray(spec.dtype, count(longer)), longer),
  ];
  for (const tensor of bad) {
    const refused = await bundle.run({ ...inputs, [spec.name]: tensor }).then(
      () => false,
      (error: unknown) => error instanceof RangeError,
    );
    if (!refused) throw new Error(`${tensor.type} [${tensor.dims}] was not refused`);
  }
  return bad.length;
}
