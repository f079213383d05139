// Continue a text with a model's folder, in headless Chromium: `node check-continue.mjs FOLDER TEXT`.
// Prints what was found as one line of JSON; nothing may be fetched once the page is ready.

import { basename, dirname, resolve } from "node:path";
import { launch } from "./browser.mjs";
import { serve } from "./serve.mjs";

const [folder, text] = process.argv.slice(2);
const dist = new URL("dist/", import.meta.url).pathname;
const server = await serve({ "/bundles/": dirname(resolve(folder)), "/": dist });
const browser = await launch();
const found = { requestsWhenReady: 0, complaints: [] };
try {
  const context = await browser.newContext();
  const page = await context.newPage();
  page.setDefaultTimeout(300_000); // a busy machine is slow, not wrong
  page.on("pageerror", (error) => found.complaints.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) found.complaints.push(message.text());
  });
  const name = encodeURIComponent(basename(resolve(folder)));
  await page.goto(`http://127.0.0.1:${server.address().port}/continue.html?model=${name}`);
  const wrong = "document.getElementById('status').classList.contains('wrong')";
  await page.waitForFunction(`"ready" in document.body.dataset || ${wrong}`);
  if (!(await page.evaluate(wrong))) {
    page.on("request", () => found.requestsWhenReady++);
    await context.setOffline(true);
    await page.fill("#text", text);
    await page.fill("#temperature", "0");
    await page.click("#continue");
    await page.waitForFunction(() => document.getElementById("stop").disabled);
    found.text = await page.textContent("#continuation");
  }
  found.status = await page.textContent("#status");
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
  server.close();
  server.closeAllConnections();
}
