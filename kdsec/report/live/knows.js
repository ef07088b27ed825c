// A switch: what the attacker gets from each defence without knowing it, and knowing it.

bringToLife("knows", (data, panel) => {
  const input = make("input", { type: "checkbox", role: "switch" });
  const word = make("strong", { "aria-hidden": true });
  const says = announcement();
  const bars = [];
  panel.append(make("label", { class: "kdsec-switch" }, input, " The attacker knows: ", word), says);
  for (const { name, rows } of data.groups) {
    const list = make("div", { role: "list", "aria-label": name });
    for (const row of rows) {
      const colour = "#d55e00";
      const { element, set } = bar(colour, row.off);
      const number = make("span", { class: "kdsec-number" });
      list.append(make("div", { class: "kdsec-row kdsec-wide", role: "listitem" }, make("span", {}, row.name), element, number));
      bars.push({ row, set, number });
    }
    panel.append(make("p", { class: "kdsec-head" }, make("strong", {}, name)), list);
  }
  panel.append(make("p", { class: "kdsec-note" }, data.note));

  const show = () => {
    const state = input.checked ? "on" : "off";
    word.textContent = state;
    for (const { row, set, number } of bars) {
      set(row[state]);
      number.textContent = `${(100 * row[state]).toFixed(0)} %`;
    }
    says.textContent = bars.map(({ row, number }) => `${row.name}: ${number.textContent}`).join(", ");
  };
  input.addEventListener("change", show);
  show();
});
