// What all live pages need besides htmx: the CSRF token, dialogs, notes, menus, and the bar of a lost connection.
(() => {
  const byId = (id) => document.getElementById(id);
  const csrf = document.querySelector("meta[name=csrf]")?.content ?? "";

  // --- htmx -------------------------------------------------------------------------------------------------
  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["X-CSRF-Token"] = csrf;
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr, elt } = event.detail;
    if (xhr.responseURL && new URL(xhr.responseURL).pathname === "/login" && location.pathname !== "/login") {
      // The session ended meanwhile: a log-in page has no place inside a fragment.
      event.detail.shouldSwap = false;
      location.assign("/login?next=" + encodeURIComponent(location.pathname + location.search));
    } else if (xhr.status >= 400 && (elt.closest("[data-live]") === elt || elt.hasAttribute("data-keep"))) {
      // What refreshes by itself keeps what it shows; the next refresh may succeed.
      event.detail.shouldSwap = false;
      if (elt.hasAttribute("data-keep") && (xhr.status === 403 || xhr.status === 404)) location.assign(location.pathname);
    }
  });
  // Menus that people opened and filters they set are theirs: a refresh does not close or change them.
  if (window.Idiomorph) {
    Object.assign(Idiomorph.defaults.callbacks, {
      beforeAttributeUpdated: (name, node) => !(name === "open" && /^(DETAILS|DIALOG)$/.test(node.tagName)),
      beforeNodeMorphed: (node) => !node.hasAttribute?.("data-keep"),
    });
  }

  // --- the bar of a lost connection -------------------------------------------------------------------------
  const broken = new Set();
  const mark = (what, bad) => {
    const was = broken.size > 0;
    if (bad) broken.add(what);
    else broken.delete(what);
    // A hiccup shorter than a second and a half is nobody's business.
    setTimeout(() => byId("lost")?.toggleAttribute("hidden", broken.size === 0), bad ? 1500 : 0);
    return was && broken.size === 0;
  };
  document.addEventListener("htmx:sseError", () => mark("events", true));
  document.addEventListener("htmx:sseOpen", () => mark("events", false) && htmx.trigger(document.body, "refresh"));
  for (const kind of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(kind, ({ target }) => {
      if (target.hasAttribute("data-live")) mark("refresh", true);
      else if (!target.hasAttribute("data-keep")) complain("The server does not answer. Nothing is known of what you asked for: look again when the connection is back.");
    });
  }
  document.addEventListener("htmx:afterOnLoad", ({ target }) => target.hasAttribute("data-live") && mark("refresh", false));

  // --- dialogs ----------------------------------------------------------------------------------------------
  const dialog = byId("dialog");
  // Where the reader was: the button, or the menu whose item it is, for that is hidden by then. By its name too, since
  // the page behind may be renewed while the dialog is on its way or open.
  let opener = null;
  document.addEventListener("htmx:beforeRequest", ({ detail }) => {
    if (detail.target?.id === "dialog-body" && !dialog?.open) opener = detail.elt.closest("details.menu") ?? detail.elt;
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target.id !== "dialog-body" || !dialog) return;
    if (!dialog.open) {
      closeMenus();
      dialog.showModal();
    }
    dialog.querySelector("[autofocus]")?.focus();
  });
  dialog?.addEventListener("close", () => {
    byId("dialog-body").replaceChildren();
    const back = opener?.isConnected ? opener : opener?.id && byId(opener.id);
    if (back) (back.querySelector("summary") ?? back).focus();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]")) {
      if (dialog?.open) dialog.close();
      else history.back();
    }
    event.target.closest("[data-close-note]")?.parentElement.remove();
    const toggle = event.target.closest("[data-toggle]");
    if (toggle) toggle.setAttribute("aria-expanded", String(byId(toggle.dataset.toggle).classList.toggle("is-open")));
    const copy = event.target.closest("[data-copy]");
    if (copy) copyText(copy);
    closeMenus(event.target.closest(".dropdown-item") ? null : event.target.closest("details.menu"));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeMenus();
  });
  document.addEventListener("submit", (event) => {
    const busy = event.target.querySelector("[data-busy]");
    if (busy) busy.classList.add("btn-loading");
  });
  // A page that comes back from the browser's cache is old: look again.
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload();
  });

  function closeMenus(except = null) {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (menu !== except) menu.open = false;
  }

  async function copyText(button) {
    const field = byId(button.dataset.copy);
    const text = field.value ?? field.textContent;
    try {
      await navigator.clipboard.writeText(text.trim());
      button.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(field);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
    }
  }

  // --- notes ------------------------------------------------------------------------------------------------
  document.addEventListener("kmgr:done", (event) => {
    dialog?.close();
    note(event.detail.text);
    htmx.trigger(document.body, "refresh");
  });

  function note(text, kind = "note") {
    const box = document.createElement("div");
    box.className = kind;
    box.setAttribute("role", kind === "note" ? "status" : "alert");
    box.textContent = text;
    byId("toasts").append(box);
    raise();
    setTimeout(() => box.remove(), 6000);
  }
  // An error goes into the open dialog, else into a note.
  function complain(text) {
    const place = dialog?.open && byId("dialog-error");
    if (!place) return note(text, "note note-bad");
    const alert = document.createElement("div");
    alert.className = "alert alert-danger";
    alert.textContent = text;
    place.replaceChildren(alert);
    alert.scrollIntoView({ block: "nearest" });
  }
  // Notes are drawn above an open dialog: the layer that was opened last is the top one.
  function raise() {
    const toasts = byId("toasts");
    if (toasts.matches(":popover-open")) toasts.hidePopover();
    toasts.showPopover();
  }
  document.addEventListener("htmx:afterSwap", (event) => event.detail.target.id === "toasts" && raise());
  window.kmgr = { csrf, complain };

  // --- more of a long list ------------------------------------------------------------------------------------
  document.addEventListener("click", (event) => {
    const more = event.target.closest("[data-more]");
    if (!more) return;
    const limit = byId(more.dataset.more);
    limit.value = Number(limit.value) + Number(more.dataset.step);
    htmx.trigger(document.body, "refresh");
  });

  // --- pictures of screens: asked for anew now and then, while somebody looks at them ------------------------
  const asked = new WeakMap();
  const inSight = (box) => box.bottom > 0 && box.top < innerHeight;
  setInterval(() => {
    if (document.hidden) return;
    const now = Date.now();
    for (const shot of document.querySelectorAll("img[data-shot]")) {
      // A picture that failed is hidden: what counts is whether its place is in sight.
      if (!inSight(shot.parentElement.getBoundingClientRect())) continue;
      if (now - (asked.get(shot) ?? 0) < 1000 * Number(shot.dataset.shot || 5) - 500) continue;
      asked.set(shot, now);
      shot.src = shot.src.split("?")[0] + "?" + now;
    }
  }, 2500);

  const shown = (event) => {
    if (event.target.matches?.("img[data-shot]")) event.target.hidden = event.type === "error";
  };
  document.addEventListener("error", shown, true);
  document.addEventListener("load", shown, true);

  // --- moments: the full stamp in the reader's own time zone --------------------------------------------------
  const localise = (event) => {
    const time = event.target.closest?.("time[datetime]");
    if (time) time.title = new Date(time.dateTime).toLocaleString();
  };
  document.addEventListener("mouseover", localise);

  // --- filters of tables --------------------------------------------------------------------------------------
  const filter = (input) => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of document.querySelectorAll(`#${input.dataset.filter} [data-row]`)) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  };
  const filterAll = () => document.querySelectorAll("input[data-filter]").forEach(filter);
  document.addEventListener("input", (event) => event.target.matches("input[data-filter]") && filter(event.target));
  document.addEventListener("htmx:afterSettle", filterAll);

  // --- parts of forms that depend on a choice -----------------------------------------------------------------
  const depend = (root) => {
    for (const part of root.querySelectorAll("[data-when]")) {
      const [name, value] = part.dataset.when.split("=");
      const form = part.closest("form");
      const chosen = form?.elements[name]?.value;
      part.hidden = chosen !== value;
      for (const control of part.querySelectorAll("input, select, textarea")) control.disabled = part.hidden;
    }
  };
  document.addEventListener("change", (event) => event.target.form && depend(event.target.form));
  document.addEventListener("htmx:afterSettle", (event) => depend(event.target.parentElement ?? document));
  depend(document);
})();
