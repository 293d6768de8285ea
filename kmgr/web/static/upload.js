// Uploads a disk image in pieces that survive a lost connection (tus), and shows how its import goes on.
(() => {
  const byId = (id) => document.getElementById(id);
  const API = "/api/v1/uploads";
  // As large as a piece may be: proxies and browsers keep long requests open, but not for hours.
  const PIECE_BYTES = 64 * 1024 * 1024;
  const RETRY_MS = [0, 500, 1000, 2000, 4000, 8000, 15000, 30000, 30000, 30000, 30000];
  const headers = () => ({ "Tus-Resumable": "1.0.0", "X-CSRF-Token": window.kmgr.csrf });
  let now = null;

  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-upload]")) return;
    const name = byId("name");
    const file = event.target.files[0];
    if (file && !name.value) name.value = file.name.replace(/\.(qcow2|raw|img|iso|vmdk|vdi|vhdx)$/i, "");
  });

  // A file may be dropped anywhere in the dialog.
  for (const kind of ["dragover", "drop"]) {
    document.addEventListener(kind, (event) => {
      const field = event.target.closest?.("dialog, form")?.querySelector("[data-upload]:enabled");
      if (!field) return;
      event.preventDefault();
      if (kind === "drop" && event.dataTransfer.files.length) {
        field.files = event.dataTransfer.files;
        field.dispatchEvent(new Event("change", { bubbles: true }));
      }
    });
  }

  // Before htmx sees it: a chosen file goes its own way.
  document.addEventListener("submit", (event) => {
    const field = event.target.querySelector("[data-upload]:enabled");
    if (!field) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!now && field.files[0]) send(event.target, field.files[0]);
  }, true);

  window.addEventListener("beforeunload", (event) => {
    if (now?.going) event.preventDefault();
  });

  async function send(form, file) {
    const job = { form, file, name: form.elements.name.value, going: true, seen: [] };
    now = job;
    show(job, true);
    try {
      job.url = await begin(job, form.elements.notes.value);
    } catch (error) {
      return fail(job, error.message);
    }
    job.upload = new tus.Upload(file, {
      uploadUrl: job.url,
      headers: { "X-CSRF-Token": window.kmgr.csrf },
      chunkSize: PIECE_BYTES,
      retryDelays: RETRY_MS,
      storeFingerprintForResuming: false,
      onShouldRetry: (error) => {
        const status = error.originalResponse?.getStatus() ?? 0;
        say("The connection is interrupted. It goes on by itself…");
        return status < 400 || status === 409 || status === 423 || status >= 500;
      },
      onProgress: (sent, total) => progress(job, sent, total),
      onError: (error) => fail(job, told(error)),
      onSuccess: () => follow(job),
    });
    byId("upload-pause").onclick = () => pause(job);
    byId("upload-discard").onclick = () => discard(job);
    byId("dialog").addEventListener("close", () => job.going && stop(job), { once: true });
    job.upload.start();
  }

  // The server knows whether this very file is under way already: it answers with that upload.
  async function begin(job, notes) {
    const facts = {
      name: job.name,
      filename: job.file.name,
      notes,
      fingerprint: [job.file.name, job.file.size, job.file.lastModified].join("|"),
    };
    const pairs = Object.entries(facts).filter(([, value]) => value).map(([key, value]) => `${key} ${base64(value)}`);
    let answer;
    try {
      answer = await fetch(API, {
        method: "POST",
        headers: { ...headers(), "Upload-Length": job.file.size, "Upload-Metadata": pairs.join(",") },
      });
    } catch {
      throw new Error("The server does not answer. Check the network and try again.");
    }
    if (answer.status === 201) return answer.headers.get("Location");
    throw new Error((await answer.json().catch(() => null))?.error?.message ?? `The server answered ${answer.status}.`);
  }

  async function pause(job) {
    const going = byId("upload-pause").textContent === "Pause";
    byId("upload-pause").textContent = going ? "Go on" : "Pause";
    if (going) {
      say("Paused");
      await job.upload.abort();
    } else {
      job.seen = [];
      job.upload.start();
    }
  }

  async function discard(job) {
    stop(job);
    await fetch(job.url, { method: "DELETE", headers: headers() }).catch(() => {});
    byId("dialog").close();
  }

  function stop(job) {
    job.going = false;
    now = null;
    job.upload?.abort();
  }

  // From here on the server works by itself; whoever stays hears how it ends.
  async function follow(job) {
    job.going = false;
    now = null;
    if (!byId("upload-step")?.isConnected) return;
    byId("upload-bar").removeAttribute("value");
    byId("upload-pause").hidden = byId("upload-discard").hidden = true;
    byId("upload-figure").textContent = "";
    while (byId("upload-step")) {
      const answer = await fetch(job.url).catch(() => null);
      const state = answer?.ok ? await answer.json() : null;
      if (state?.step === "done") {
        document.dispatchEvent(new CustomEvent("kmgr:done", { detail: { text: `${job.name} was imported.` } }));
        return;
      }
      if (answer?.status === 404) return fail(job, "This import was cancelled, or ended long ago: look at the list of images.");
      if (state?.error) return fail(job, state.error);
      if (state) say(`It is being imported: ${state.step}, ${state.percent} %`);
      await new Promise((done) => setTimeout(done, 700));
    }
  }

  function progress(job, sent, total) {
    if (!byId("upload-bar")) return;
    const at = performance.now();
    job.seen = [...job.seen.filter(([time]) => at - time < 8000), [at, sent]];
    const [first, had] = job.seen[0];
    const rate = at - first > 900 ? (1000 * (sent - had)) / (at - first) : 0;
    byId("upload-bar").value = (100 * sent) / (total || 1);
    say("Uploading…");
    const left = rate > 0 ? ` · ${size(rate)}/s · ${span((total - sent) / rate)} left` : "";
    byId("upload-figure").textContent = `${Math.floor((100 * sent) / (total || 1))} % of ${size(total)}${left}`;
  }

  function fail(job, text) {
    job.going = false;
    now = null;
    show(job, false);
    window.kmgr.complain(text);
  }

  function show(job, going) {
    byId("dialog-error")?.replaceChildren();
    if (byId("upload-progress")) byId("upload-progress").hidden = !going;
    const submit = job.form.querySelector("[type=submit]");
    if (submit) submit.disabled = going;
  }

  function say(text) {
    const step = byId("upload-step");
    if (step && step.textContent !== text) step.textContent = text;
  }

  function told(error) {
    try {
      return JSON.parse(error.originalResponse.getBody()).error.message;
    } catch {
      return "The upload was broken off. What arrived is kept: choose the same file again to go on.";
    }
  }

  function base64(text) {
    return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
  }

  function size(bytes) {
    const units = ["bytes", "KB", "MB", "GB", "TB"];
    let n = 0;
    while (bytes >= 1024 && n < units.length - 1) { bytes /= 1024; n += 1; }
    return `${bytes < 10 && n ? bytes.toFixed(1) : Math.round(bytes)} ${units[n]}`;
  }

  function span(seconds) {
    if (seconds < 90) return `${Math.ceil(seconds)} s`;
    return seconds < 5400 ? `${Math.ceil(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
  }
})();
