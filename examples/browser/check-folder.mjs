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

await usePage(resolve(bundles), "", async (page, found) => {
  found.folders = {};
  const pictured = new Set();
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
      text: (await page.isVisible("#continue")) ? await continueText(page) : null,
    };
    found.folders[basename(folder)] = seen;
    const kind = seen.said ? "refused" : seen.maps ? "maps" : seen.text ? "text" : "facts";
    if (!pictured.has(kind)) await takePictures(page, resolve(pictures), kind);
    pictured.add(kind);
  }
  await page.click("#example");
  await waitFor(page, "#facts:empty");
  found.model = await page.textContent("#model-name");
  found.text = await continueText(page);
});
