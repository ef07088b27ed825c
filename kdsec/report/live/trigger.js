// A test image, a trigger and a perturbation, each as strong as the reader wants. What the networks answer was
// asked in Python, for every position of the two sliders; here it is only looked up.

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

bringToLife("trigger", (data, panel) => {
  const [channels, height, width] = data.shape;
  const size = channels * height * width;
  const [pattern, mask] = [bytes(data.pattern), bytes(data.mask)];
  const samples = data.samples.map((sample) => ({ ...sample,
    pixels: bytes(sample.pixels), poison: bytes(sample.poison) }));

  /** The image with both marks, and the perturbation alone, in the order of the canvas (RGBA). */
  const mix = ({ pixels, poison }, opacity, strength) => {
    const picture = new Uint8ClampedArray(4 * height * width).fill(255);
    const change = new Uint8ClampedArray(4 * height * width).fill(255);
    for (let i = 0; i < size; i += 1) {
      const m = mask[i] / 255;
      const moved = poison[i] - Math.round((1 - m) * pixels[i] + m * pattern[i]);
      const value = (1 - opacity * m) * pixels[i] + opacity * m * pattern[i] + strength * moved;
      const beside = 127.5 + (strength * moved * 127.5) / data.radius;
      const at = 4 * (i % (height * width));
      const places = channels === 1 ? [at, at + 1, at + 2] : [at + Math.floor(i / (height * width))];
      for (const place of places) { // grey images are ink on paper, as in the other figures
        picture[place] = channels === 1 ? 255 - value : value;
        change[place] = channels === 1 ? 255 - beside : beside;
      }
    }
    return [picture, change];
  };

  const screen = (name) => {
    const canvas = make("canvas", { width, height, role: "img", "aria-label": name });
    const element = make("div", {}, canvas, name);
    const show = (rgba) => canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
    return { element, show };
  };

  const answers = data.arms.map(({ name, colour }) => {
    const { element, set } = bar(colour);
    const [says, number] = [make("span", { class: "kdsec-answer" }), make("span", { class: "kdsec-number" })];
    const row = make("div", { class: "kdsec-row kdsec-asked", role: "listitem" },
      make("span", { class: "kdsec-name" }, name), says, element, number);
    return { name, row, says, number, set };
  });

  const draw = () => {
    const sample = samples[images.at()];
    const [opacity, strength] = [data.triggers[mark.at()], data.perturbations[noise.at()]];
    const [picture, change] = mix(sample, opacity, strength);
    seen.show(picture);
    added.show(change);
    const target = data.classes[data.target];
    const said = answers.map(({ name, row, says, number, set }) => {
      const [answer, probability, ofTarget] = sample.answers[name][mark.at()][noise.at()];
      const fooled = answer === data.target;
      row.classList.toggle("kdsec-fooled", fooled);
      says.textContent = `${data.classes[answer]} (${(probability / 10).toFixed(0)} %)`;
      number.textContent = `${(ofTarget / 10).toFixed(1)} %`;
      set(ofTarget / 1000);
      return `${name}: ${data.classes[answer]}`;
    });
    line.textContent = `label ${data.classes[sample.label]}, target ${target}. ${said.join("; ")}.`;
  };

  const percent = (values) => (at) => `${Math.round(100 * values[at])} %`;
  const levels = (at) => `${Math.round(data.radius * data.perturbations[at])}/255`;
  const pictures = samples.map(({ image, label }) => ({ image, name: `label ${data.classes[label]}` }));
  const images = choice("test image", pictures, () => draw());
  const mark = slider("trigger", data.triggers.length, 0, percent(data.triggers), () => draw());
  const noise = slider("perturbation ε", data.perturbations.length, 0, levels, () => draw());
  const seen = screen("what the networks see");
  const added = screen("the perturbation, around mid-grey");
  const head = make("div", { class: "kdsec-row kdsec-asked", "aria-hidden": true },
    make("span", {}, "network"), make("span", {}, "answers"),
    make("span", {}, `probability of ${data.classes[data.target]}`), make("span", {}));
  const line = announcement();
  panel.append(images.element, mark.element, noise.element,
    make("div", { class: "kdsec-screens" }, seen.element, added.element),
    make("div", { role: "list", "aria-label": "answers of the networks" }, head, ...answers.map((a) => a.row)),
    line);
  draw();
});
