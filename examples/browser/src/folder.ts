// Where the files of a model come from: the server of this page, or a folder that a person chose.

/** A folder with a model. */
export interface Folder {
  readonly name: string;
  /** The bytes of a file by its name in the folder, with "/"; a FolderError where they cannot be had. */
  read(file: string): Promise<Uint8Array<ArrayBuffer>>;
}

/** What is wrong with a folder and what to do about it, in a sentence. */
export class FolderError extends Error {}

/** A folder at an address of this page's server that ends in "/". */
export function servedFolder(url: string): Folder {
  return {
    name: url,
    async read(file) {
      const response = await fetch(url + file);
      if (!response.ok) throw new FolderError(`${url}${file}: ${response.status} ${response.statusText}`);
      return new Uint8Array(await response.arrayBuffer());
    },
  };
}

/** A folder on this machine. @param files by their names in it. */
export function localFolder(name: string, files: ReadonlyMap<string, File>): Folder {
  return {
    name,
    async read(file) {
      const found = files.get(file);
      if (found === undefined) {
        throw new FolderError(`${file} is missing from “${name}”. Copy the whole folder again.`);
      }
      try {
        return new Uint8Array(await found.arrayBuffer());
      } catch (error) {
        throw new FolderError(
          `${file} in “${name}” cannot be read (${String(error)}). ` +
            "If it changed since you chose the folder, or is larger than this browser can hold, choose another.",
        );
      }
    },
  };
}

/** The folder of <input type="file" webkitdirectory>; undefined where nothing was chosen. */
export function chosenFolder(files: Iterable<File>): Folder | undefined {
  const found = new Map<string, File>();
  let name: string | undefined;
  for (const file of files) {
    const [folder, ...path] = file.webkitRelativePath.split("/");
    name ??= folder;
    found.set(path.join("/"), file);
  }
  return name === undefined ? undefined : localFolder(name, found);
}

/** The folder that was dropped on the page. Call it in the event's handler: later the items are gone. */
export async function droppedFolder(items: DataTransferItemList): Promise<Folder> {
  const entries = Array.from(items, (item) => item.webkitGetAsEntry());
  const [entry] = entries;
  if (entries.length !== 1 || !entry?.isDirectory) {
    throw new FolderError("What you dropped is not one folder. Drop the folder that holds contract.json.");
  }
  const files = new Map<string, File>();
  await collect(entry as FileSystemDirectoryEntry, "", files);
  return localFolder(entry.name, files);
}

async function collect(
  folder: FileSystemDirectoryEntry,
  prefix: string,
  files: Map<string, File>,
): Promise<void> {
  const reader = folder.createReader();
  for (;;) {
    const entries = await new Promise<FileSystemEntry[]>((resolve, reject) =>
      reader.readEntries(resolve, reject),
    );
    if (entries.length === 0) return; // a browser gives them a hundred at a time
    for (const entry of entries) {
      const path = prefix + entry.name;
      if (entry.isDirectory) await collect(entry as FileSystemDirectoryEntry, `${path}/`, files);
      else files.set(path, await fileOf(entry as FileSystemFileEntry));
    }
  }
}

function fileOf(entry: FileSystemFileEntry): Promise<File> {
  return new Promise((resolve, reject) => entry.file(resolve, reject));
}
