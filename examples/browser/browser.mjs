// A headless Chromium of this machine.

import { execFileSync } from "node:child_process";
import { chromium } from "playwright-core";

const NAMES = ["chromium", "chromium-browser", "google-chrome"];

/** Where a Chromium is, or undefined; CHROMIUM overrides. */
export function findChromium() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  for (const name of NAMES) {
    try {
      return execFileSync("sh", ["-c", `command -v ${name}`], { encoding: "utf8" }).trim();
    } catch {
      // Another name, then.
    }
  }
  return undefined;
}

export async function launch() {
  const executablePath = findChromium();
  if (executablePath === undefined) throw new Error(`none of ${NAMES.join(", ")} is installed`);
  return chromium.launch({
    executablePath,
    // WebGPU in software: there is no graphics card here.
    ignoreDefaultArgs: ["--disable-gpu"],
    args: ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"],
  });
}
