// The screen of a desktop: connects with a fresh ticket, tells what happens, and connects again by itself.
// Who does nothing for too long is asked whether they are still there; the desktop's server keeps the time.
// Browser tests read <body data-state="connecting|connected|lost|gone" data-idle="|warned|closed">.
import RFB from "./vendor/novnc/core/rfb.js";

const byId = (id) => document.getElementById(id);
const body = document.body;
const { desktop, name } = body.dataset;
const csrf = document.querySelector("meta[name=csrf]").content;
const RETRY_MS = [500, 1000, 2000, 3000, 5000];
const SCREENLESS_TRIES = 4;
const NEWS_S = 30;
let rfb = null;
let tries = 0;
let timer = 0;
let leaving = false;
let asking = 0;
let ending = 0;

function show(state, title, text, { buttons = false, final = false } = {}) {
  body.dataset.state = state;
  byId("state-text").textContent = { connecting: "Connecting…", connected: "Connected", lost: "Connection lost", gone: "Gone" }[state];
  byId("veil").hidden = state === "connected";
  byId("veil-busy").hidden = buttons;
  byId("veil-title").textContent = title;
  byId("veil-text").textContent = text;
  byId("veil-buttons").hidden = !buttons;
  // What is gone for good is not tried again: the way on leads through the list.
  byId("again").hidden = final;
  byId("back-home").classList.toggle("btn-primary", final);
}

async function ticket() {
  const answer = await fetch(`/api/v1/desktops/${encodeURIComponent(desktop)}/ticket`, {
    method: "POST",
    headers: { "X-CSRF-Token": csrf, Accept: "application/json" },
    cache: "no-store",
  });
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told.url;
  throw Object.assign(new Error(told.error?.message ?? `The server answered ${answer.status}.`), { status: answer.status });
}

async function connect() {
  clearTimeout(timer);
  try {
    const url = await ticket();
    byId("screen").replaceChildren();
    const screen = new RFB(byId("screen"), url, { wsProtocols: ["binary"] });
    rfb = screen;
    screen.scaleViewport = byId("fit").getAttribute("aria-pressed") === "true";
    screen.clipViewport = !screen.scaleViewport;
    screen.background = "transparent";
    screen.addEventListener("connect", connected);
    screen.addEventListener("disconnect", () => screen === rfb && lost());
    screen.addEventListener("clipboard", (event) => copied(event.detail.text));
  } catch (error) {
    refused(error);
  }
}

function connected() {
  tries = 0;
  show("connected", "", "");
  rfb.focus();
  wake();
  attend();
}

// A guest that nobody touched for minutes may have switched its screen off. As at a desk, a pointer that moves wakes it.
function wake() {
  const canvas = byId("screen").querySelector("canvas");
  const { left, top } = canvas.getBoundingClientRect();
  for (const step of [1, 2]) {
    const place = { clientX: left + step, clientY: top + step, bubbles: true };
    setTimeout(() => canvas.dispatchEvent(new MouseEvent("mousemove", place)), 100 * step);
  }
}

// How the desktop stands with its idle rule, and whether its server drains: asked when there may be news, and every few
// seconds during a warning.
async function attention(method = "GET") {
  const answer = await fetch(`/api/v1/desktops/${encodeURIComponent(desktop)}/attention`, {
    method,
    headers: { "X-CSRF-Token": csrf, Accept: "application/json" },
    cache: "no-store",
  });
  return answer.ok ? answer.json() : null;
}

async function attend(method = "GET") {
  clearTimeout(asking);
  const told = await attention(method).catch(() => null);
  if (body.dataset.state !== "connected") return;
  warn(told?.idleness === "warned" ? told : null);
  if (told) {
    said("farewell", told.farewell);
    said("message", told.message);
  }
  const again = !told ? 15 : told.idleness === "active" ? Math.min(told.again_s + 0.5, NEWS_S) : told.idleness === "no_rule" ? NEWS_S : 2;
  asking = setTimeout(attend, Math.max(again, 1) * 1000);
}

// That its server drains and when this desktop ends there, or what an administrator says: said once, and whoever has
// read it folds it up.
function said(id, text) {
  if (text === byId(`${id}-text`).textContent) return;
  byId(`${id}-text`).textContent = text;
  byId(id).hidden = !text;
  byId(id).open = true;
}

function warn(told) {
  body.dataset.idle = told ? "warned" : "";
  clearInterval(ending);
  byId("idle").hidden = !told;
  if (!told) return;
  const until = Date.now() + told.left_s * 1000;
  const count = () => { byId("idle-left").textContent = Math.max(0, Math.round((until - Date.now()) / 1000)); };
  byId("idle-text").textContent = told.text;
  count();
  ending = setInterval(count, 250);
}

function refused(error) {
  if (error.status === 401) {
    location.assign("/login?next=" + encodeURIComponent(location.pathname));
  } else if (error.status === 403) {
    show("gone", `You cannot see ${name}`, error.message, { buttons: true, final: true });
  } else if (error.status === 404) {
    const why = "It was given back, or its server failed: what was only on it is lost. Your desktops have a fresh one for you.";
    show("gone", `${name} is gone`, why, { buttons: true, final: true });
  } else if ([400, 409].includes(error.status) && tries >= SCREENLESS_TRIES) {
    show("gone", `${name} has no screen now`, error.message, { buttons: true });
  } else {
    lost(error.status ? error.message : "");
  }
}

async function lost(reason = "") {
  if (leaving) return;
  rfb = null;
  clearTimeout(asking);
  warn(null);
  // What was closed because nobody was there is not opened again by itself.
  const told = tries === 0 ? await attention().catch(() => null) : null;
  if (told?.idleness === "closed") {
    body.dataset.idle = "closed";
    show("gone", "Closed, because nobody was there", told.text, { buttons: true });
    return;
  }
  const wait = RETRY_MS[Math.min(tries, RETRY_MS.length - 1)];
  tries += 1;
  show("lost", "Connection lost", reason || "Trying again by itself. As long as its server is well, your desktop keeps running.", { buttons: tries > 4 });
  clearTimeout(timer);
  timer = setTimeout(connect, wait);
}

// What was copied in the desktop is at hand here as well, where the browser allows that.
function copied(text) {
  byId("clip-text").value = text;
  navigator.clipboard?.writeText(text).catch(() => {});
}

// Keys are sent as people type them: unicode beyond Latin-1 has its own range of key symbols.
function typeText(text) {
  for (const character of text) {
    const point = character.codePointAt(0);
    const symbol = character === "\n" ? 0xff0d : character === "\t" ? 0xff09 : point > 0xff ? 0x01000000 | point : point;
    rfb.sendKey(symbol, null);
  }
}

byId("keys").addEventListener("click", () => { rfb?.sendCtrlAltDel(); rfb?.focus(); });
byId("full").addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  // Where the browser can, Alt-Tab, Escape and the like go to the desktop as well.
  else document.documentElement.requestFullscreen().then(() => navigator.keyboard?.lock?.()).catch(() => {});
  rfb?.focus();
});
byId("fit").addEventListener("click", (event) => {
  const fits = event.currentTarget.getAttribute("aria-pressed") !== "true";
  event.currentTarget.setAttribute("aria-pressed", String(fits));
  if (rfb) { rfb.scaleViewport = fits; rfb.clipViewport = !fits; rfb.focus(); }
});
byId("clip").addEventListener("click", (event) => {
  const panel = byId("clip-panel");
  panel.hidden = !panel.hidden;
  event.currentTarget.setAttribute("aria-expanded", String(!panel.hidden));
  if (panel.hidden) rfb?.focus();
  else { rfb?.blur(); byId("clip-text").focus(); }
});
byId("clip-send").addEventListener("click", () => { rfb?.clipboardPasteFrom(byId("clip-text").value); byId("clip").click(); });
byId("clip-type").addEventListener("click", () => { const text = byId("clip-text").value; byId("clip").click(); typeText(text); });
byId("idle-stay").addEventListener("click", () => { attend("POST"); rfb?.focus(); });
byId("again").addEventListener("click", () => { tries = 0; body.dataset.idle = ""; show("connecting", `Connecting to ${name}`, "One moment…"); connect(); });
window.addEventListener("online", () => body.dataset.state === "lost" && connect());
window.addEventListener("pagehide", () => { leaving = true; });
connect();
