// The metadata of an ONNX file, which is a protobuf message.
// Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, ModelProto and StringStringEntryProto.

const METADATA_PROPS = 14;
const [VARINT, FIXED64, BYTES, FIXED32] = [0, 1, 2, 5];

/** The metadata of a model by key; a RangeError where the bytes are no protobuf message. */
export function readMetadata(model: Uint8Array): Map<string, string> {
  const found = new Map<string, string>();
  for (const [field, entry] of fields(model)) {
    if (field !== METADATA_PROPS) continue;
    const [key, value] = [1, 2].map((wanted) => {
      const part = [...fields(entry)].findLast(([number]) => number === wanted);
      return new TextDecoder().decode(part?.[1]);
    });
    found.set(key!, value!);
  }
  return found;
}

/** The fields of a message that hold bytes, by number. */
function* fields(message: Uint8Array): Generator<[number, Uint8Array]> {
  let at = 0;
  const varint = () => {
    let [value, scale] = [0, 1];
    for (;;) {
      if (at >= message.length) throw new RangeError("the file ends within a number");
      const byte = message[at++]!;
      value += (byte & 0x7f) * scale; // not by shifts, which have 32 bits
      if (byte < 0x80) return value;
      scale *= 0x80;
    }
  };
  while (at < message.length) {
    const tag = varint();
    const kind = tag & 7;
    if (kind === VARINT) varint();
    else if (kind === FIXED64) at += 8;
    else if (kind === FIXED32) at += 4;
    else if (kind === BYTES) {
      const end = varint() + at;
      if (end > message.length) throw new RangeError("the file ends within a field");
      yield [Math.floor(tag / 8), message.subarray(at, end)];
      at = end;
    } else throw new RangeError(`there is no wire type ${kind}`);
  }
}
