// Highlights one method everywhere while its name is pointed at, or after it is tapped; switches light and dark.
(() => {
  const root = document.documentElement;
  const chips = [...document.querySelectorAll("[data-pick]")];
  const shown = [...document.querySelectorAll("[data-method]")];
  let held = null;

  const show = (method) => {
    root.classList.toggle("picking", method !== null);
    shown.forEach((part) => part.classList.toggle("on", part.dataset.method === method));
  };
  const hold = (method) => {
    held = method;
    chips.forEach((chip) => chip.setAttribute("aria-pressed", String(chip.dataset.pick === held)));
    show(held);
  };

  chips.forEach((chip) => {
    chip.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show(chip.dataset.pick));
    chip.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(held));
    chip.addEventListener("click", () => hold(held === chip.dataset.pick ? null : chip.dataset.pick));
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hold(null));

  const toggle = document.querySelector(".toggle");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
})();
