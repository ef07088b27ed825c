// One image, the logits of one or several networks; temperature and the number of classes kept are the reader's.

/** The softmax of the `keep` largest logits over `temperature`, zero elsewhere. */
const softmaxOfLargest = (logits, temperature, keep) => {
  const order = logits.map((_, k) => k).sort((a, b) => logits[b] - logits[a] || a - b);
  const kept = order.slice(0, keep);
  const weights = logits.map(() => 0);
  for (const k of kept) weights[k] = Math.exp((logits[k] - logits[order[0]]) / temperature);
  const total = weights.reduce((sum, w) => sum + w);
  const p = weights.map((w) => w / total);
  return { p, order: kept.filter((k) => p[k] > 0) };
};

const entropy = (p) => p.reduce((sum, q) => (q > 0 ? sum - q * Math.log(q) : sum), 0);

bringToLife("probability", (data, panel) => {
  const count = data.classes.length;
  const draw = () => {
    const sample = data.samples[images.at()];
    const [temperature, keep] = [data.temperatures[heat.at()], kept.at() + 1];
    const facts = data.arms.map(({ name, colour }) => {
      const { p, order } = softmaxOfLargest(sample.logits[name], temperature, keep);
      const { p: plain } = softmaxOfLargest(sample.logits[name], 1, count);
      return { name, colour, p, order, plain, entropy: entropy(p) };
    });
    charts.replaceChildren(...facts.map((fact) => chart(fact, sample.label)));
    says.textContent = `${heat.says()}, ${kept.says()}. ` + facts
      .map(({ name, p, order, entropy: h }) =>
        `${name}: ${data.classes[order[0]]} ${share(p[order[0]])}, entropy ${h.toFixed(2)}`)
      .join("; ");
  };
  const chart = (fact, label) => {
    const rows = data.classes.map((name, k) => {
      const { element, set } = bar(fact.colour, fact.plain[k]);
      set(fact.p[k]);
      const kind = `kdsec-row${fact.p[k] === 0 ? " kdsec-off" : ""}${k === label ? " kdsec-true" : ""}`;
      return make("div", { class: kind, role: "listitem" },
        make("span", { class: "kdsec-name", title: name }, name), element,
        make("span", { class: "kdsec-number" }, share(fact.p[k])));
    });
    const order = fact.order.map((k) => data.classes[k]).join(" › ");
    return make("section", { class: "kdsec-chart" },
      make("div", { class: "kdsec-head" }, make("strong", {}, fact.name), " ",
        make("span", {}, `entropy ${fact.entropy.toFixed(2)}`)),
      make("div", { role: "list", "aria-label": `probabilities, ${fact.name}` }, ...rows),
      make("div", { class: "kdsec-order" }, `order: ${order}`));
  };
  const pictures = data.samples.map(({ image, label }) => ({ image, name: `label ${data.classes[label]}` }));
  const images = choice("test image (its label is underlined below)", pictures, () => draw());
  const heat = slider("temperature", data.temperatures.length, data.start,
    (at) => `τ = ${data.temperatures[at]}`, () => draw());
  const kept = slider("classes kept", count, data.keep - 1,
    (at) => (at + 1 === count ? `all ${count}` : `the ${at + 1} largest`), () => draw());
  const charts = make("div", { class: "kdsec-charts" });
  const says = announcement();
  const note = "Thin marks: the answer as it was, at τ = 1 with all classes. "
    + `Entropy is in nats, at most ln ${count} = ${Math.log(count).toFixed(2)}.`;
  panel.append(images.element, heat.element, kept.element, charts, make("div", { class: "kdsec-note" }, note), says);
  draw();
});
