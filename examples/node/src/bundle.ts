// A bundle with any of onnxruntime's JavaScript builds: in Node and in browsers alike.

import type { InferenceSession, Tensor } from "onnxruntime-common";

export type Tensors = Record<string, Tensor>;

/** What of `onnxruntime-node` or `onnxruntime-web` is used. */
export interface Runtime {
  readonly Tensor: new (type: Tensor.Type, data: Tensor.DataType, dims: readonly number[]) => Tensor;
}

/** An input or output, as contract.json describes it. */
export interface Spec {
  readonly name: string;
  readonly dtype: string;
  /** Sizes, and the names of those that may vary. */
  readonly axes: readonly (string | number)[];
  readonly vocab_size: number | null;
  /** [low, high): every value lies in it; left out where any may come. */
  readonly value_range?: readonly [number, number];
}

// What is read here of a contract, of its inputs and outputs, and of the pairs of its cache. A key
// that is not known may restrict what a call may contain.
const KNOWN = {
  contract:
    "adapters bos_token_id cache causal_block computed eos_token_ids form format free_axes inputs last_only mask " +
    "max_seq_len min_onnxruntime min_seq_len opset outputs pad_token_id precision ragged unbatched",
  tensor: "name dtype axes vocab_size kind value_range",
  pair: "past present bounded shared computed_from",
};

function refuseUnknown(found: object, known: string): void {
  const unknown = Object.keys(found).filter((key) => !known.split(" ").includes(key));
  if (unknown.length > 0) {
    throw new RangeError(
      `the contract has keys that are not known here: ${unknown.join(", ")}. ` +
        "Use the clients of the version of causal-onnx that wrote it",
    );
  }
}

export interface Contract {
  readonly inputs: readonly Spec[];
  readonly outputs: readonly Spec[];
  readonly cache: readonly { past: string; present: string; bounded?: number | null }[];
  readonly mask: string | null;
  readonly max_seq_len: number | null;
  readonly min_seq_len?: number;
  /** How rows share a call; "single", "steps" and "packed_steps" restrict its positions. */
  readonly ragged?: string;
  /** The inputs by which low-rank adapters change linear layers. */
  readonly adapters?: readonly { down: string; up: string }[];
  /** Ids that end a text; left out where none is known. */
  readonly eos_token_ids?: readonly number[];
}

/** A model that takes what its contract allows. */
export class Bundle {
  /** The inputs that a caller gives: all but the cache, the mask, and adapters, which are not used. */
  readonly inputs: readonly Spec[];

  constructor(
    readonly runtime: Runtime,
    readonly session: InferenceSession,
    readonly contract: Contract,
  ) {
    refuseUnknown(contract, KNOWN.contract);
    for (const spec of [...contract.inputs, ...contract.outputs]) refuseUnknown(spec, KNOWN.tensor);
    for (const pair of contract.cache) refuseUnknown(pair, KNOWN.pair);
    const adapters = (contract.adapters ?? []).flatMap(({ down, up }) => [down, up]);
    const own = new Set([...contract.cache.map((pair) => pair.past), contract.mask, ...adapters]);
    this.inputs = contract.inputs.filter((spec) => !own.has(spec.name));
  }

  /** Give every output but the cache, by name. */
  run(inputs: Tensors): Promise<Tensors> {
    return new Stream(this).read(inputs);
  }

  /** Give the sizes of the axes; a RangeError where the contract is not kept. */
  check(inputs: Tensors, past: number): Map<string, number> {
    const sizes = new Map<string, number>();
    const names = this.inputs.map((spec) => spec.name);
    if (Object.keys(inputs).sort().join() !== [...names].sort().join()) {
      throw new RangeError(`the inputs are ${names}, got ${Object.keys(inputs)}`);
    }
    for (const spec of this.inputs) {
      const tensor = inputs[spec.name]!;
      const given = `${spec.name} is ${tensor.type} [${tensor.dims}]`;
      if (tensor.type !== spec.dtype || tensor.dims.length !== spec.axes.length) {
        throw new RangeError(`${given}, expected ${spec.dtype} [${spec.axes}]`);
      }
      spec.axes.forEach((axis, position) => {
        const size = tensor.dims[position]!;
        const expected = typeof axis === "number" ? axis : (sizes.get(axis) ?? size);
        if (size !== expected || size === 0) {
          throw new RangeError(`${given}: ${axis} must be ${expected || "at least 1"}`);
        }
        if (typeof axis === "string") sizes.set(axis, size);
      });
      if (spec.vocab_size !== null) checkValues(tensor, 0, spec.vocab_size, spec.name);
      if (spec.value_range) checkValues(tensor, ...spec.value_range, spec.name);
    }
    const seq = sizes.get("seq") ?? 0;
    const { min_seq_len: least = 1, max_seq_len: most, ragged } = this.contract;
    if (past + seq > (most ?? Infinity)) {
      throw new RangeError(`${past + seq} positions, expected at most ${most}`);
    }
    if (past + seq < least) throw new RangeError(`${past + seq} positions, expected at least ${least}`);
    const single =
      ragged === "single" ||
      (past > 0 && (ragged === "steps" || (ragged === "packed_steps" && (sizes.get("batch") ?? 1) > 1)));
    if (single && seq > 1) throw new RangeError(`${seq} positions in a call, expected 1 here`);
    return sizes;
  }
}

function checkValues(tensor: Tensor, low: number, high: number, name: string): void {
  for (const value of tensor.data as Iterable<number | bigint>) {
    // Not the other way round: NaN is in no range.
    if (!(value >= low && value < high)) {
      throw new RangeError(`${name} holds ${value}, expected values in [${low}, ${high})`);
    }
  }
}

/** Reads sequences chunk by chunk; the cache holds what came before. */
export class Stream {
  length = 0;
  private past: Tensors = {};

  constructor(private readonly bundle: Bundle) {}

  /** Give the outputs for the next positions. */
  async read(inputs: Tensors): Promise<Tensors> {
    const { contract, session } = this.bundle;
    const sizes = this.bundle.check(inputs, this.length);
    const total = this.length + (sizes.get("seq") ?? 0);
    sizes.set("total_seq", total).set("past_seq", 0).set("past_slots", 0);
    const feeds: Tensors = { ...inputs, ...this.past };
    for (const spec of contract.inputs) {
      // The mask is all ones, the first past is empty, and so are adapters: their rank is 0.
      feeds[spec.name] ??= this.ones(spec, sizes);
    }
    const outputs: Tensors = { ...(await session.run(feeds)) };
    for (const { past, present } of contract.cache) {
      this.past[past] = outputs[present]!;
      delete outputs[present];
    }
    this.length = total;
    return outputs;
  }

  private ones(spec: Spec, sizes: Map<string, number>): Tensor {
    const dims = spec.axes.map((axis) => (typeof axis === "number" ? axis : (sizes.get(axis) ?? (axis === "batch" ? 1 : 0))));
    const data = makeArray(spec.dtype, count(dims));
    if (spec.name === this.bundle.contract.mask) {
      if (data instanceof BigInt64Array) data.fill(1n);
      else data.fill(1);
    }
    return new this.bundle.runtime.Tensor(spec.dtype as Tensor.Type, data, dims);
  }
}

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
} as const;

export type TypedArray = InstanceType<(typeof ARRAYS)[keyof typeof ARRAYS]>;

/** An array for values of a dtype of contract.json. */
export function makeArray(dtype: string, source: number | ArrayBuffer): TypedArray {
  if (!(dtype in ARRAYS)) throw new RangeError(`no array holds ${dtype}`);
  return new (ARRAYS[dtype as keyof typeof ARRAYS] as new (from: unknown) => TypedArray)(source);
}

export function count(dims: readonly number[]): number {
  return dims.reduce((product, size) => product * size, 1);
}
