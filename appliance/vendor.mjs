// Copies what the pages use of the browser libraries into kmgr/web/static/vendor, and nothing else: `npm run vendor`.
import { cp, mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const vendor = path.join(root, "kmgr/web/static/vendor");
const wanted = {
  "@tabler/core/dist/css/tabler.min.css": "tabler.min.css",
  "htmx.org/dist/htmx.min.js": "htmx.min.js",
  "htmx-ext-sse/dist/sse.min.js": "sse.min.js",
  "idiomorph/dist/idiomorph-ext.min.js": "idiomorph-ext.min.js",
  "tus-js-client/dist/tus.min.js": "tus.min.js",
  "@novnc/novnc/core": "novnc/core",
  "@novnc/novnc/vendor": "novnc/vendor",
  "@novnc/novnc/LICENSE.txt": "novnc/LICENSE.txt",
};

await rm(vendor, { recursive: true, force: true });
await mkdir(vendor, { recursive: true });
for (const [from, to] of Object.entries(wanted)) {
  const source = path.join(root, "node_modules", from);
  const target = path.join(vendor, to);
  await mkdir(path.dirname(target), { recursive: true });
  if ((await stat(source)).isDirectory() || !/\.(css|js)$/.test(to)) {
    await cp(source, target, { recursive: true });
  } else {
    // Source maps are not shipped: without this line the browser's tools would ask for them.
    const text = await readFile(source, "utf8");
    await writeFile(target, text.replace(/\n?(\/\/# |\/\*# )sourceMappingURL=.*$/s, "\n"));
  }
}
