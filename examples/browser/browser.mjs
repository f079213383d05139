// A headless Chromium of this machine, and how the checks use the page in it.

import { execFileSync } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { serve } from "./serve.mjs";

const DIST = new URL("dist/", import.meta.url).pathname;

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

/**
 * Open the page, cut it off from the network, use it, and print what was found as one line of JSON.
 *
 * @param {string} bundles the folder with the models' folders
 * @param {string} path of the page, with its query
 * @param {(page: import("playwright-core").Page, found: Record<string, unknown>) => Promise<void>} use
 */
export async function usePage(bundles, path, use) {
  const server = await serve({ "/bundles/": bundles, "/": DIST });
  const browser = await launch();
  const found = { requestsWhenReady: 0, complaints: [] };
  try {
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
    const page = await context.newPage();
    page.setDefaultTimeout(300_000); // a busy machine is slow, not wrong
    page.on("pageerror", (error) => found.complaints.push(String(error)));
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) found.complaints.push(message.text());
    });
    await page.goto(`http://127.0.0.1:${server.address().port}/${path}`);
    await waitFor(page, "body[data-ready], #status.wrong");
    if ((await page.locator("#status.wrong").count()) === 0) {
      page.on("request", () => found.requestsWhenReady++);
      await context.setOffline(true);
      await use(page, found);
    }
    found.status = await page.textContent("#status");
    console.log(JSON.stringify(found));
  } finally {
    await browser.close();
    server.close();
    server.closeAllConnections();
  }
}

/** Wait for an element, seen or not: the policy of the page forbids Playwright's waitForFunction. */
export async function waitFor(page, selector) {
  await page.waitForSelector(selector, { state: "attached" });
}

/** Press "Continue the text" and give the text with what the model adds, of which nothing is drawn. */
export async function continueText(page) {
  await page.fill("#temperature", "0");
  await page.click("#continue");
  await waitFor(page, "#stop:disabled");
  return page.textContent("#continuation");
}

/** Wait until the page has drawn what a change of its size or colours asks for. */
export async function drawn(page) {
  await page.evaluate(
    () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))),
  );
}

/** Pictures of the page as it is: on a desk and a phone, in light and in dark. */
export async function takePictures(page, folder, state) {
  await mkdir(folder, { recursive: true });
  const before = page.viewportSize();
  for (const width of [1280, 390]) {
    await page.setViewportSize({ width, height: 900 });
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await drawn(page);
      const path = join(folder, `${state}-${width}-${colorScheme}.png`);
      await page.screenshot({ path, fullPage: true });
    }
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize(before);
  await drawn(page);
}
