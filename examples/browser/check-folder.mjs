// Load folders as a person would, in headless Chromium, one after the other:
// `node check-folder.mjs BUNDLES PICTURES TEXT FOLDER...`; the last is dropped on the page instead.
// Prints what was found as one line of JSON; nothing may be sent or fetched once the page is ready.

import { basename, resolve } from "node:path";
import { continueText, takePictures, usePage, waitFor } from "./browser.mjs";

const [bundles, pictures, text, ...folders] = process.argv.slice(2);

async function drop(page, folder) {
  const session = await page.context().newCDPSession(page);
  const data = { items: [], files: [resolve(folder)], dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await session.send("Input.dispatchDragEvent", { type, x: 300, y: 300, data });
  }
}

/** Continue the text by a few tokens. */
async function beginText(page) {
  await page.fill("#temperature", "0");
  await page.click("#continue");
  await page.locator("#continuation span", { hasText: /.{4}/ }).waitFor();
  // Not by a click of the mouse, which would wait where the text has come to its end already.
  await page.evaluate(() => document.getElementById("stop").click());
  return page.textContent("#continuation");
}

await usePage(resolve(bundles), "", async (page, found) => {
  found.folders = {};
  const kinds = new Set(); // of what is seen; the first of a kind is looked at in full
  await page.fill("#text", text);
  for (const [index, folder] of folders.entries()) {
    if (index === folders.length - 1) await drop(page, folder);
    else {
      const [chooser] = await Promise.all([
        page.waitForEvent("filechooser"),
        page.click("text=Load your own folder"),
      ]);
      await chooser.setFiles(resolve(folder));
    }
    await waitFor(page, `body[data-opened="${index + 1}"]`);
    const seen = {
      model: await page.textContent("#model-name"),
      facts: await page.locator("#facts li").allTextContents(),
      said: await page.textContent("#folder-status"),
      maps: await page.isVisible("#map"),
      text: null,
    };
    found.folders[basename(folder)] = seen;
    const hasText = await page.isVisible("#continue");
    const kind = seen.said ? "refused" : seen.maps ? "maps" : hasText ? "text" : "facts";
    const isNew = !kinds.has(kind);
    kinds.add(kind);
    if (hasText) seen.text = isNew ? await continueText(page) : await beginText(page);
    if (isNew) await takePictures(page, resolve(pictures), kind);
  }
  await page.click("#example");
  await waitFor(page, "#facts:empty");
  found.model = await page.textContent("#model-name");
  found.text = await continueText(page);
});
