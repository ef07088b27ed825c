// What all figures that answer have in common. Whatever a reader can touch is made here, by the script:
// where no script runs there is nothing but the still picture.

/** An HTML element with attributes and children (elements or text). */
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

/** A slider over `count` positions; `say` puts a position into words, `changed` hears of every move. */
const slider = (name, count, start, say, changed) => {
  const input = make("input", { type: "range", min: 0, max: count - 1, step: 1, "aria-label": name });
  const value = make("span", { class: "kdsec-value", "aria-hidden": true });
  const tell = () => {
    value.textContent = say(Number(input.value));
    input.setAttribute("aria-valuetext", value.textContent);
  };
  input.value = start;
  input.addEventListener("input", () => { tell(); changed(); });
  tell();
  const element = make("label", { class: "kdsec-slider" }, make("span", {}, name), value, input);
  return { element, at: () => Number(input.value), says: () => value.textContent };
};

/** Pictures to choose one from, each `{ image: address, name: text }`. */
const choice = (name, pictures, changed) => {
  window.kdsecChoices = (window.kdsecChoices ?? 0) + 1; // radio buttons of one name exclude each other
  const group = `kdsec-choice-${window.kdsecChoices}`;
  const inputs = pictures.map(() => make("input", { type: "radio", name: group }));
  inputs[0].checked = true;
  const labels = pictures.map(({ image, name: alt }, index) => {
    inputs[index].addEventListener("change", changed);
    return make("label", {}, inputs[index], make("img", { src: image, alt, class: "dark-light" }));
  });
  const element = make("fieldset", { class: "kdsec-choice" }, make("legend", {}, name), ...labels);
  return { element, at: () => inputs.findIndex((input) => input.checked) };
};

/** A line of text that is read out when it changes. */
const announcement = () => make("output", { class: "kdsec-says", "aria-live": "polite" });

/** A share in [0, 1] as three decimals that keep their place under each other. */
const share = (p) => (p === 0 ? "0" : p < 0.0005 ? "<.001" : p.toFixed(3));

/** A horizontal bar of a share, `plain` marks where it was before anything was moved. */
const bar = (colour, plain) => {
  const fill = make("span", { class: "kdsec-fill", style: `background: ${colour}` });
  const track = make("span", { class: "kdsec-track", "aria-hidden": true }, fill);
  if (plain !== undefined) track.append(make("span", { class: "kdsec-plain", style: `left: ${100 * plain}%` }));
  return { element: track, set: (p) => { fill.style.width = `${100 * p}%`; } };
};

/** Start every figure of this kind that is on the page and still is a still. */
const bringToLife = (kind, start) => {
  for (const root of document.querySelectorAll(`.kdsec-live[data-kind="${kind}"]:not([data-live])`)) {
    root.dataset.live = "no"; // so it remains if the next lines fail, and the still picture stays
    const panel = make("div", { class: "kdsec-panel" });
    start(JSON.parse(root.querySelector('script[type="application/json"]').textContent), panel, root);
    root.append(panel);
    root.dataset.live = "yes";
  }
};
