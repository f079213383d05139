// `node selftest.mjs PROVIDER BUNDLE...` replays golden vectors in headless Chromium, and prints a
// line of JSON for each bundle.

import { resolve } from "node:path";
import { launch } from "./browser.mjs";
import { serve } from "./serve.mjs";

const [provider, ...bundles] = process.argv.slice(2);
const dist = new URL("dist/", import.meta.url).pathname;
const browser = await launch();
let passed = true;
try {
  for (const bundle of bundles) {
    const server = await serve({ "/bundle/": resolve(bundle), "/": dist });
    const page = await browser.newPage();
    page.setDefaultTimeout(300_000); // a busy machine is slow, not wrong
    await page.goto(`http://127.0.0.1:${server.address().port}/selftest.html?provider=${provider}`);
    await page.waitForFunction(() => document.querySelector("output").textContent !== "");
    const found = JSON.parse(await page.textContent("output"));
    console.log(JSON.stringify(found));
    passed &&= found.passed === true;
    await page.close();
    server.close();
    server.closeAllConnections();
  }
} finally {
  await browser.close();
}
process.exitCode = passed ? 0 : 1;
