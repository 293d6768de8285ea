// A button that is pressed before the page's scripts have arrived is pressed when they have: no click is lost.
(() => {
  let pressed = null;
  const keep = (event) => {
    const button = event.target.closest("button[type=button]");
    if (!button) return;
    event.stopImmediatePropagation();
    pressed = button;
  };
  document.addEventListener("click", keep, true);
  // Deferred scripts have run by then, and the timer lets those that wait for the same event go first.
  document.addEventListener("DOMContentLoaded", () =>
    setTimeout(() => {
      document.removeEventListener("click", keep, true);
      if (pressed?.isConnected) pressed.click();
    }),
  );
})();
