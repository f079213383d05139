// Whether a folder is whole: what is checked before anything of it is run.

import type { Manifest } from "./load.js";
import { FolderError, type Folder } from "./folder.js";
import { readMetadata } from "./metadata.js";

const FORMAT = 1;
const PARTS = ["contract", "certificate", "source"] as const;
const AGAIN = "Copy the whole folder again, or write it again with causal-onnx bundle.";

/**
 * Check every file that contract.json lists, and that contract.json is what the model says of itself.
 *
 * Hashes protect against damage: whoever rewrites the model and the hashes makes another folder.
 *
 * @param progress is told the file that is being read.
 * @returns a folder of the bytes that were checked; a FolderError where there is something wrong.
 */
export async function checkFolder(folder: Folder, progress: (file: string) => void): Promise<Folder> {
  if (!("subtle" in crypto)) {
    throw new FolderError(
      "This browser computes no hashes for a page that is not from https:// or 127.0.0.1. " +
        "Serve the page on this machine: node serve.mjs.",
    );
  }
  const read = new Map<string, Uint8Array<ArrayBuffer>>();
  const contract = await folder.read("contract.json").catch(() => {
    throw new FolderError(
      `“${folder.name}” is not the folder of a model: it has no contract.json. ` +
        "Choose a folder that causal-onnx export or causal-onnx bundle wrote.",
    );
  });
  read.set("contract.json", contract);
  const manifest = parse(folder, contract);
  for (const [file, { sha256, size_bytes: size }] of Object.entries(manifest.files)) {
    progress(file);
    const bytes = await folder.read(file);
    let difference = "";
    if (bytes.length !== size) difference = `it has ${bytes.length} bytes, and contract.json lists ${size}`;
    else if ((await hash(bytes)) !== sha256) difference = "its sha256 is not the one in contract.json";
    if (difference) {
      throw new FolderError(`${file} in “${folder.name}” was changed: ${difference}. ${AGAIN}`);
    }
    // Test data are for other programs, and may be large.
    if (!file.startsWith("test_data_set_")) read.set(file, bytes);
  }
  compare(folder, manifest, read.get("model.onnx")!);
  return {
    name: folder.name,
    async read(file) {
      const bytes = read.get(file);
      if (bytes === undefined) {
        throw new FolderError(`contract.json of “${folder.name}” lists no ${file}. ${AGAIN}`);
      }
      return bytes;
    },
  };
}

function parse(folder: Folder, bytes: Uint8Array): Manifest {
  let found: Partial<Manifest> & { format?: unknown };
  try {
    found = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as typeof found;
  } catch (error) {
    throw new FolderError(`contract.json in “${folder.name}” is not JSON (${String(error)}). ${AGAIN}`);
  }
  if (found?.format !== FORMAT) {
    throw new FolderError(
      `contract.json in “${folder.name}” has the format ${JSON.stringify(found?.format)}, and this page ` +
        `reads ${FORMAT}. Use the page of the version of causal-onnx that wrote the folder.`,
    );
  }
  const { files } = found;
  for (const needed of ["model.onnx", "goldens.json"]) {
    if (typeof files !== "object" || files === null || !(needed in files)) {
      throw new FolderError(`contract.json of “${folder.name}” lists no ${needed}. ${AGAIN}`);
    }
  }
  return found as Manifest;
}

/** Contract.json has no hash of its own, but the model holds all that it says. */
function compare(folder: Folder, manifest: Manifest, model: Uint8Array): void {
  const said: Record<string, unknown> = { certificate: null, source: {} };
  try {
    const metadata = readMetadata(model);
    for (const part of PARTS) {
      const text = metadata.get(`causal_onnx.${part}`);
      if (text !== undefined) said[part] = JSON.parse(text);
    }
  } catch (error) {
    throw new FolderError(`model.onnx in “${folder.name}” is no ONNX file: ${String(error)}. ${AGAIN}`);
  }
  // Only the contract keeps the number of its own format there.
  for (const part of [said["certificate"], said["source"]] as ({ format?: unknown } | null)[]) {
    delete part?.format;
  }
  for (const part of PARTS) {
    if (!isSame(said[part], manifest[part])) {
      throw new FolderError(
        `contract.json in “${folder.name}” was changed: its ${part} is not the one in model.onnx. ${AGAIN}`,
      );
    }
  }
}

/** Whether two values of JSON are equal; the order of keys says nothing. */
function isSame(one: unknown, other: unknown): boolean {
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) {
    return one === other;
  }
  const [a, b] = [one, other] as Record<string, unknown>[];
  const keys = Object.keys(a!);
  return (
    Array.isArray(one) === Array.isArray(other) &&
    keys.length === Object.keys(b!).length &&
    keys.every((key) => key in b! && isSame(a![key], b![key]))
  );
}

async function hash(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
