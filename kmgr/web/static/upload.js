// Uploads a disk image straight to the API with progress; the dialog's form is the same for a file on the server.
(() => {
  const byId = (id) => document.getElementById(id);
  let sending = null;

  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-upload]")) return;
    const name = byId("name");
    const file = event.target.files[0];
    if (file && !name.value) name.value = file.name.replace(/\.(qcow2|raw|img)$/i, "");
  });

  // Before htmx sees it: a chosen file goes its own way.
  document.addEventListener("submit", (event) => {
    const field = event.target.querySelector("[data-upload]:enabled");
    if (!field) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!sending && field.files[0]) send(event.target, field.files[0]);
  }, true);

  window.addEventListener("beforeunload", (event) => {
    if (sending?.going) event.preventDefault();
  });

  function send(form, file) {
    const query = new URLSearchParams({ name: form.elements.name.value, file: file.name, notes: form.elements.notes.value });
    const request = new XMLHttpRequest();
    sending = request;
    request.going = true;
    byId("dialog-error").replaceChildren();
    byId("upload-progress").hidden = false;
    const submit = form.querySelector("[type=submit]");
    submit.disabled = true;
    request.upload.addEventListener("progress", (event) => {
      const percent = Math.floor((100 * event.loaded) / (event.total || 1));
      byId("upload-bar")?.setAttribute("value", percent);
      if (byId("upload-figure")) byId("upload-figure").textContent = `${percent} % of ${size(event.total)}`;
    });
    request.upload.addEventListener("load", () => {
      request.going = false;
      byId("upload-bar")?.removeAttribute("value");
      if (byId("upload-step")) byId("upload-step").textContent = "Checking, copying and hashing it…";
      if (byId("upload-figure")) byId("upload-figure").textContent = "";
    });
    request.addEventListener("loadend", () => {
      request.going = false;
      sending = null;
      submit.disabled = false;
      if (byId("upload-progress")) byId("upload-progress").hidden = true;
      if (request.status === 201) {
        document.dispatchEvent(new CustomEvent("kmgr:done", { detail: { text: `${query.get("name")} was imported.` } }));
      } else {
        window.kmgr.complain(told(request));
      }
    });
    byId("dialog").addEventListener("close", () => request.going && request.abort(), { once: true });
    request.open("POST", "/api/v1/images?" + query);
    request.setRequestHeader("X-CSRF-Token", window.kmgr.csrf);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(file);
  }

  function told(request) {
    if (request.status === 0) return "The upload was broken off. Check the network and try again.";
    try {
      return JSON.parse(request.responseText).error.message;
    } catch {
      return `The server answered ${request.status}. Try again.`;
    }
  }

  function size(bytes) {
    const units = ["bytes", "KB", "MB", "GB", "TB"];
    let n = 0;
    while (bytes >= 1024 && n < units.length - 1) { bytes /= 1024; n += 1; }
    return `${bytes < 10 && n ? bytes.toFixed(1) : Math.round(bytes)} ${units[n]}`;
  }
})();
