// Use the page as a person would, in headless Chromium: `node check.mjs BUNDLES SCREENSHOTS`.
// Prints what was found as one line of JSON; nothing may be fetched once the page is ready.

import { resolve } from "node:path";
import { drawn, takePictures, usePage, waitFor } from "./browser.mjs";

const TEXT = "The value of the first";
const [bundles, screenshots] = process.argv.slice(2).map((path) => resolve(path));

/** The lightness (CIE L*) of the colours of the legend, from the least weight to the largest. */
function lightnessOfScale() {
  const { backgroundImage } = getComputedStyle(document.getElementById("scale"));
  return Array.from(backgroundImage.matchAll(/rgb\((\d+), (\d+), (\d+)\)/g), ([, ...parts]) => {
    const [r, g, b] = parts.map((part) => {
      const value = Number(part) / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    return luminance > 0.008856 ? 116 * Math.cbrt(luminance) - 16 : 903.3 * luminance;
  });
}

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

async function check(page, found) {
  found.scale = await page.evaluate(lightnessOfScale);
  // By keyboard alone: Tab reaches a link, the folder, a link and the text.
  found.focus = [];
  for (let stop = 0; stop < 4; stop++) {
    await page.keyboard.press("Tab");
    found.focus.push(await page.evaluate(() => document.activeElement.id || document.activeElement.tagName));
  }
  await page.keyboard.press("ControlOrMeta+A");
  const seen = new Set([await mapOf(page)]);
  for (let length = 1; length <= TEXT.length; length++) {
    await page.keyboard.type(TEXT[length - 1]);
    await waitFor(page, `body[data-length="${length}"]`);
    seen.add(await mapOf(page));
  }
  found.keys = TEXT.length;
  found.differentMaps = seen.size - 1;
  found.stated = Number(await page.evaluate(() => document.body.dataset.above));
  found.pixels = await page.evaluate(countAbove);

  await page.focus("#heads button");
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
  await page.locator("#continuation span", { hasText: /.{4}/ }).waitFor();
  found.streams = await page.isEnabled("#stop");
  await waitFor(page, "#stop:disabled");
  found.continuation = await page.textContent("#continuation");
}

await usePage(bundles, "", async (page, found) => {
  found.text = TEXT;
  await takePictures(page, screenshots, "first");
  await check(page, found);
  await takePictures(page, screenshots, "continued");
  await page.setViewportSize({ width: 390, height: 844 });
  found.fitsPhone = await page.evaluate(
    () => document.documentElement.scrollWidth <= window.innerWidth,
  );
  await page.emulateMedia({ colorScheme: "dark" });
  await drawn(page);
  found.pixelsInTheDark = await page.evaluate(countAbove);
});
