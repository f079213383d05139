// Continue a text with a model's folder, in headless Chromium: `node check-continue.mjs FOLDER TEXT`.
// Prints what was found as one line of JSON; nothing may be fetched once the page is ready.

import { basename, dirname, resolve } from "node:path";
import { continueText, usePage } from "./browser.mjs";

const [folder, text] = process.argv.slice(2);
const name = encodeURIComponent(basename(resolve(folder)));
await usePage(dirname(resolve(folder)), `continue.html?model=${name}`, async (page, found) => {
  await page.fill("#text", text);
  found.text = await continueText(page);
});
