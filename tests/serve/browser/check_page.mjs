// Use a server's page as a person would, in headless Chromium:
// `node check_page.mjs ADDRESS WHAT SCREENSHOTS [KEY]`. Prints what was found as one line of JSON.

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { launch } from "../../../examples/browser/browser.mjs";

const [address, what, screenshots, key] = process.argv.slice(2);
const found = { complaints: [], foreign: [] };

const text = (page, selector) => page.textContent(selector);
const untilIdle = (page) =>
  page.waitForFunction(() => document.getElementById("stop").disabled);
const tile = (page, name) =>
  page.evaluate((name) => {
    const terms = [...document.querySelectorAll("#tiles dt")];
    return terms.find((term) => term.textContent === name)?.nextElementSibling.textContent;
  }, name);

/** Names of what a person can reach that has none that is read aloud. */
const unnamed = (page) =>
  page.evaluate(() => {
    const named = (item) =>
      item.getAttribute("aria-label") ||
      item.getAttribute("aria-labelledby") ||
      item.textContent.trim() ||
      item.labels?.[0]?.textContent.trim();
    const all = [...document.querySelectorAll("input, select, textarea, button, canvas, [tabindex]")];
    // What is inside a button is read aloud as the button's name.
    const isAlone = (item) => item.checkVisibility() && !item.parentElement.closest("button");
    return all.filter((item) => isAlone(item) && !named(item)).map((item) => item.id || item.outerHTML);
  });

/** The least contrast of texts with what is behind them, as WCAG 2 has it. */
const contrast = (page) =>
  page.evaluate(() => {
    const light = (rgb) => {
      const [r, g, b] = rgb.map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const parse = (colour) => colour.match(/[\d.]+/g).map(Number);
    const behind = (item) => {
      for (let at = item; at; at = at.parentElement) {
        const rgba = parse(getComputedStyle(at).backgroundColor);
        if (rgba.length === 3 || rgba[3] === 1) return rgba;
      }
      return [255, 255, 255];
    };
    let least = 21;
    for (const item of document.querySelectorAll("body *")) {
      const says = [...item.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      if (!says || !item.checkVisibility() || item.disabled) continue;
      const [one, two] = [parse(getComputedStyle(item).color), behind(item)].map((rgb) => light(rgb.slice(0, 3)));
      least = Math.min(least, (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05));
    }
    return least;
  });

const parts = {
  async chat(page) {
    found.title = await text(page, "#talk-title");
    found.models = await page.$$eval("#models th", (cells) => cells.map((cell) => cell.textContent));
    found.note = await text(page, "#map-note");
    await page.fill("#max-tokens", "12");
    await page.fill("#seed", "7");
    await page.fill("#text", "hello <b>there</b>");
    await page.press("#text", "Enter");
    await page.waitForFunction(() => document.getElementById("figures").textContent !== "");
    await untilIdle(page);
    found.said = await page.$$eval(".message", (all) => all.map((item) => item.textContent));
    found.figures = await text(page, "#figures");
    await page.fill("#text", "again");
    await page.press("#text", "Enter");
    await page.waitForFunction(() => document.querySelectorAll(".message").length === 4);
    await untilIdle(page);
    found.focus = await page.evaluate(() => document.activeElement.id);
    await pictures(page);
    await page.click("#new");
    found.left = await page.$$eval(".message", (all) => all.length);
  },

  async stop(page) {
    await page.fill("#text", "Once upon a time");
    await page.click("#send");
    await page.waitForFunction(
      () => document.querySelector("#continuation .new")?.textContent.length > 0,
    );
    found.running = await page.isEnabled("#stop");
    await page.click("#stop");
    await untilIdle(page);
    found.written = await text(page, "#continuation .new");
    found.status = await text(page, "#status");
  },

  async completion(page) {
    await page.selectOption("#model", "stories");
    found.title = await text(page, "#talk-title");
    await page.fill("#max-tokens", "40");
    await page.fill("#text", "Once upon a time");
    found.typed = await mapOf(page, 18);
    await page.focus("#map");
    found.readings = [await text(page, "#cell")];
    for (const press of ["ArrowLeft", "ArrowUp", "ArrowUp"]) {
      await page.keyboard.press(press);
      found.readings.push(await text(page, "#cell"));
    }
    const before = await page.$eval("#map", (canvas) => canvas.toDataURL());
    await page.click("#heads button:nth-child(3)");
    found.head = await text(page, "#map-title");
    found.headChangesMap = before !== (await page.$eval("#map", (canvas) => canvas.toDataURL()));
    await page.waitForFunction(() => document.querySelectorAll("#tiles dd").length === 8);
    const writtenBefore = Number(await tile(page, "Tokens written"));
    await page.click("#send");
    await page.waitForFunction(() => document.getElementById("figures").textContent !== "");
    await untilIdle(page);
    found.given = await text(page, "#continuation .given");
    found.written = await text(page, "#continuation .new");
    found.grown = await mapOf(page, 58);
    found.note = await text(page, "#map-note");
    await page.waitForFunction(
      (most) => Number(document.querySelector("#tiles div:nth-child(5) dd").textContent) >= most,
      writtenBefore + 40,
    );
    found.counted = Number(await tile(page, "Tokens written")) - writtenBefore;
    found.running = await tile(page, "Running");
    await pictures(page);
  },

  async ids(page) {
    await page.selectOption("#model", "language");
    await page.fill("#max-tokens", "5");
    await page.fill("#text", "5 x");
    await page.click("#send");
    await page.waitForFunction(() => document.getElementById("status").textContent !== "");
    found.refused = await text(page, "#status");
    await page.fill("#text", "5 3");
    await page.click("#send");
    await page.waitForFunction(() => document.getElementById("figures").textContent !== "");
    found.written = await text(page, "#continuation .new");
    await page.selectOption("#model", "small");
    found.tensors = await text(page, "#talk-note");
    found.formIsHidden = !(await page.isVisible("#form"));
  },

  async refusal(page) {
    await page.selectOption("#model", "talker");
    await page.fill("#max-tokens", "4");
    await page.fill("#temperature", "2000");
    await page.fill("#text", "hello");
    await page.press("#text", "Enter");
    await page.waitForFunction(() => document.getElementById("status").textContent !== "");
    found.status = await text(page, "#status");
    found.text = await page.inputValue("#text");
    found.messages = await page.$$eval(".message", (all) => all.length);
  },
};

async function mapOf(page, length) {
  await page.waitForFunction((length) => document.body.dataset.map === String(length), length);
  return { above: await page.evaluate(() => document.body.dataset.above), pixels: await page.evaluate(pixels) };
}

/** Pixels of the first small map above its diagonal of another colour than that of nothing. */
function pixels() {
  const canvas = document.querySelector("#heads canvas");
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const at = (row, column) => data.slice((row * canvas.width + column) * 4).slice(0, 3).join();
  const swatch = document.createElement("canvas").getContext("2d");
  swatch.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--above").trim();
  swatch.fillRect(0, 0, 1, 1);
  const nothing = swatch.getImageData(0, 0, 1, 1).data.slice(0, 3).join();
  let [above, below] = [0, new Set()];
  for (let row = 0; row < canvas.width; row++) {
    for (let column = 0; column < canvas.width; column++) {
      if (column > row) above += at(row, column) !== nothing;
      else below.add(at(row, column));
    }
  }
  return { above, coloursBelow: below.size };
}

async function pictures(page) {
  found.unnamed = await unnamed(page);
  found.contrast = await contrast(page);
  await page.screenshot({ path: join(screenshots, "desktop.png"), fullPage: true });
  await page.setViewportSize({ width: 390, height: 844 });
  found.fitsPhone = await page.evaluate(
    () => document.documentElement.scrollWidth <= window.innerWidth,
  );
  await page.screenshot({ path: join(screenshots, "phone.png"), fullPage: true });
  await page.emulateMedia({ colorScheme: "dark" });
  found.contrastInTheDark = await contrast(page);
  await page.screenshot({ path: join(screenshots, "dark.png"), fullPage: true });
}

await mkdir(screenshots, { recursive: true });
const browser = await launch();
try {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 } });
  const page = await context.newPage();
  page.setDefaultTimeout(300_000); // a busy machine is slow, not wrong
  page.on("pageerror", (error) => found.complaints.push(String(error)));
  page.on("console", (message) => {
    const isRefusal = /status of 4\d\d/.test(message.text()); // Chromium says so of every one
    if (["error", "warning"].includes(message.type()) && !isRefusal) {
      found.complaints.push(message.text());
    }
  });
  page.on("request", (request) => {
    if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(address)) {
      found.foreign.push(request.url());
    }
  });
  await page.goto(address);
  if (key !== undefined) {
    await page.waitForSelector("#key-form:not([hidden])");
    found.focusOfKey = await page.evaluate(() => document.activeElement.id);
    await page.fill("#key", "wrong");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => /not known/.test(document.getElementById("status").textContent));
    await page.fill("#key", key);
    await page.keyboard.press("Enter");
  }
  await page.waitForFunction(() => "ready" in document.body.dataset);
  if (await page.isVisible("#options")) await page.click("#options summary");
  await parts[what](page);
  found.stored = await page.evaluate(
    () => localStorage.length + sessionStorage.length + document.cookie.length,
  );
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
}
