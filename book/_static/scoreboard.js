// The scoreboard: chapters are folded, and filters leave the rows that a reader asks for. Without this script
// every row is shown. A link to a claim opens its chapter, whatever is folded or filtered away.
const CHOICES = {
  by: ["whose", { paper: "claims of papers", ours: "our questions" }],
  attack: ["attack", null],
  scale: ["scale", null],
  verdict: ["verdict", null],
};

document.addEventListener("DOMContentLoaded", () => {
  const strip = document.querySelector(".bd-article .strip");
  const boards = [...document.querySelectorAll(".bd-article details.board")];
  if (!strip || boards.length === 0) return; // another page
  const claims = boards.flatMap((board) => [...board.querySelectorAll("tbody")]);
  const rows = (claim) => [...claim.rows];

  const values = {
    by: claims.map((claim) => claim.dataset.by),
    attack: claims.map((claim) => claim.dataset.attack),
    scale: claims.flatMap(rows).filter((row) => row.dataset.verdict !== "not yet run").map((row) => row.dataset.scale),
    verdict: claims.flatMap(rows).map((row) => row.dataset.verdict),
  };
  const form = document.createElement("form");
  form.className = "filters";
  const selects = Object.entries(CHOICES).map(([name, [title, words]]) => {
    const select = document.createElement("select");
    select.name = name;
    select.append(new Option("all", ""));
    for (const value of new Set(values[name])) select.append(new Option(words?.[value] ?? value, value));
    const label = document.createElement("label");
    label.append(`${title} `, select);
    form.append(label);
    return select;
  });
  const clear = document.createElement("button");
  clear.type = "reset";
  clear.textContent = "show all";
  const count = document.createElement("output");
  form.append(clear, count);
  strip.after(form);

  const update = () => {
    const wanted = Object.fromEntries(selects.map((select) => [select.name, select.value]));
    const asked = Object.values(wanted).some(Boolean);
    let left = 0;
    for (const claim of claims) {
      const fits = ["by", "attack"].every((name) => !wanted[name] || claim.dataset[name] === wanted[name]);
      const kept = rows(claim).filter((row) => {
        row.hidden = !(fits && ["scale", "verdict"].every((name) => !wanted[name] || row.dataset[name] === wanted[name]));
        return !row.hidden;
      });
      claim.hidden = kept.length === 0;
      left += kept.length > 0;
      if (kept.length > 0) { // what the claim says stands beside the first of its rows that is left
        const head = claim.querySelector("th");
        head.rowSpan = kept.length;
        kept[0].prepend(head);
      }
    }
    for (const board of boards) {
      for (const table of board.querySelectorAll(".scoreboard")) table.hidden = !table.querySelector("tbody:not([hidden])");
      board.open = asked && board.querySelector("tbody:not([hidden])") !== null;
    }
    count.textContent = `${left} of ${claims.length} claims`;
  };
  const follow = () => {
    const claim = claims.find((each) => `#${each.id}` === decodeURIComponent(location.hash));
    if (!claim) return;
    if (claim.hidden) {
      selects.forEach((select) => { select.value = ""; });
      update();
    }
    claim.closest("details").open = true;
    claim.scrollIntoView();
  };
  form.addEventListener("change", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", follow);
  // A mark whose claim is in the address already changes nothing there, and is followed all the same.
  strip.addEventListener("click", () => setTimeout(follow));
  window.addEventListener("beforeprint", () => boards.forEach((board) => { board.open = true; }));
  update();
  follow();
});
