// Use the page as a person would, in headless Chromium: `node check.mjs BUNDLES SCREENSHOTS`.
// Prints what was found as one line of JSON; nothing may be fetched once the page is ready.

import { mkdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { launch } from "./browser.mjs";
import { serve } from "./serve.mjs";

const TEXT = "The value of the first";
const [bundles, screenshots] = process.argv.slice(2).map((path) => resolve(path));
const dist = new URL("dist/", import.meta.url).pathname;

/** Pixels of the map above its diagonal that are not of the colour that stands for nothing. */
function countAbove() {
  const canvas = document.getElementById("map");
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const cells = Number(document.body.dataset.length);
  const scale = canvas.width / canvas.clientWidth;
  const labelled = (canvas.clientWidth - 18) / cells >= 9;
  const margin = labelled ? 18 * scale : 0;
  const cell = (canvas.width - margin) / cells;
  const pixel = (row, column) => {
    const [x, y] = [column, row].map((index) => Math.floor(margin + (index + 0.5) * cell));
    return data.slice((y * canvas.width + x) * 4, (y * canvas.width + x) * 4 + 3).join();
  };
  const swatch = document.createElement("canvas").getContext("2d");
  swatch.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--above").trim();
  swatch.fillRect(0, 0, 1, 1);
  const empty = swatch.getImageData(0, 0, 1, 1).data.slice(0, 3).join();
  let [above, checked, colours] = [0, 0, new Set()];
  for (let row = 0; row < cells; row++) {
    for (let column = 0; column < cells; column++) {
      if (column <= row) colours.add(pixel(row, column));
      else if (++checked && pixel(row, column) !== empty) above++;
    }
  }
  return { above, checked, coloursBelow: colours.size };
}

const mapOf = (page) => page.$eval("#map", (canvas) => canvas.toDataURL());
const lengthIs = (page, length) =>
  page.waitForFunction((length) => document.body.dataset.length === String(length), length);

async function check(page, found) {
  // By keyboard alone: the text is the first thing that Tab reaches.
  await page.keyboard.press("Tab");
  found.firstFocus = await page.evaluate(() => document.activeElement.id);
  await page.keyboard.press("ControlOrMeta+A");
  const seen = new Set([await mapOf(page)]);
  for (let length = 1; length <= TEXT.length; length++) {
    await page.keyboard.type(TEXT[length - 1]);
    await lengthIs(page, length);
    seen.add(await mapOf(page));
  }
  found.keys = TEXT.length;
  found.differentMaps = seen.size - 1;
  found.stated = Number(await page.evaluate(() => document.body.dataset.above));
  found.pixels = await page.evaluate(countAbove);

  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  const before = await mapOf(page);
  await page.keyboard.press("Enter");
  found.headByKey = await page.textContent("#map-title");
  found.headChangesMap = (await mapOf(page)) !== before;

  await page.focus("#map");
  const readings = [await page.textContent("#cell")];
  for (const key of ["ArrowUp", "ArrowLeft", "End"]) {
    await page.keyboard.press(key);
    readings.push(await page.textContent("#cell"));
  }
  found.readings = readings;

  await page.fill("#temperature", "0");
  await page.focus("#continue");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("continuation").textContent.length > 4);
  found.streams = await page.isEnabled("#stop");
  await page.waitForFunction(() => document.getElementById("stop").disabled);
  found.continuation = await page.textContent("#continuation");
}

await mkdir(screenshots, { recursive: true });
const server = await serve({ "/bundles/": bundles, "/": dist });
const browser = await launch();
const found = { text: TEXT, requestsWhenReady: 0, complaints: [] };
try {
  const context = await browser.newContext({ viewport: { width: 1000, height: 1400 } });
  const page = await context.newPage();
  page.setDefaultTimeout(300_000); // a busy machine is slow, not wrong
  page.on("pageerror", (error) => found.complaints.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) found.complaints.push(message.text());
  });
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.waitForFunction(() => "ready" in document.body.dataset);
  page.on("request", () => found.requestsWhenReady++);
  await context.setOffline(true);
  await check(page, found);
  await page.screenshot({ path: join(screenshots, "desktop.png"), fullPage: true });
  await page.setViewportSize({ width: 360, height: 740 });
  found.fitsPhone = await page.evaluate(
    () => document.documentElement.scrollWidth <= window.innerWidth,
  );
  await page.screenshot({ path: join(screenshots, "phone.png"), fullPage: true });
  await page.emulateMedia({ colorScheme: "dark" });
  await page.screenshot({ path: join(screenshots, "dark.png"), fullPage: true });
  found.pixelsInTheDark = await page.evaluate(countAbove);
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
  server.close();
  server.closeAllConnections();
}
