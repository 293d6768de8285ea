// After the wizard's success: waits until the grid's own pages answer at this address, then opens them.
(() => {
  const EVERY_MS = 1000;
  const LONG_MS = 25000;
  let began = 0;

  function arrive() {
    if (!document.getElementById("setup-warnings")) return location.assign("/login");
    // What was warned of stays until it is read.
    document.getElementById("setup-wait-text").textContent = "The log-in page is ready.";
    document.querySelector("#setup-waiting .spinner-border").hidden = true;
    document.getElementById("setup-go").hidden = false;
  }

  async function look() {
    try {
      const answer = await fetch("/api/v1/status", { cache: "no-store" });
      if (answer.ok) return arrive();
    } catch {
      // The listener is just changing hands.
    }
    if (Date.now() - began > LONG_MS) {
      // The certificate may be a new one, which only the browser itself can ask about.
      document.getElementById("setup-wait-text").textContent =
        "This takes longer than usual. Open the log-in page yourself; the browser may ask about the certificate once more.";
      document.getElementById("setup-go").hidden = false;
    }
    setTimeout(look, EVERY_MS);
  }

  document.addEventListener("htmx:afterSettle", () => {
    if (began || !document.getElementById("setup-waiting")) return;
    began = Date.now();
    setTimeout(look, EVERY_MS);
  });
})();
