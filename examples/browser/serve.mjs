// Serve the pages and bundles on this machine alone: `node serve.mjs BUNDLES [PORT]`.

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, resolve, sep } from "node:path";
import { pathToFileURL } from "node:url";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

/**
 * Serve folders until the server is closed.
 *
 * @param {Record<string, string>} mounts the beginning of a path -> a folder; the first that fits
 * @param {number} port 0: any that is free
 * @returns {Promise<import("node:http").Server>}
 */
export async function serve(mounts, port = 0) {
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? "/", "http://localhost").pathname);
    const prefix = Object.keys(mounts).find((prefix) => path.startsWith(prefix)) ?? "";
    const folder = resolve(mounts[prefix] ?? ".") + sep;
    const file = join(folder, path.slice(prefix.length) || "index.html");
    const found = file.startsWith(folder) && (await stat(file).catch(() => undefined));
    if (!found || !found.isFile()) {
      response.writeHead(404).end("not found");
      return;
    }
    response.writeHead(200, {
      "content-type": TYPES[extname(file)] ?? "application/octet-stream",
      "content-length": found.size,
    });
    createReadStream(file).pipe(response);
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return server;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const [bundles = "../../build/bundles", port = "8000"] = process.argv.slice(2);
  const dist = new URL("dist/", import.meta.url).pathname;
  await serve({ "/bundles/": bundles, "/": dist }, Number(port));
  console.log(`http://127.0.0.1:${port}/ until it is interrupted`);
}
