// Long tables can be sorted: a click on a column's head sorts by it, a second click turns the order around,
// a third brings back the order of the page.
const SHORTEST = 8; // rows; below that, the eye is faster

// What a cell is sorted by: the value it names, a verdict's difference for instance, or the number that it
// begins with; its text where no cell of the column has either.
const text = (cell) => cell.innerText.trim();
const number = (cell) => {
  const found = (cell.dataset.value ?? text(cell)).replace(/[−–]/g, "-").match(/^[+-]?[\d,]*\.?\d+(e[+-]?\d+)?/i);
  return found ? Number(found[0].replace(/,/g, "")) : NaN;
};

function compare(cells) {
  const numbers = cells.map(number);
  if (numbers.every(Number.isNaN)) {
    return (a, b) => text(a).localeCompare(text(b), "en", { numeric: true });
  }
  const key = (cell) => (Number.isNaN(number(cell)) ? Infinity : number(cell)); // what has none comes last
  return (a, b) => key(a) - key(b) || 0;
}

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...(table.tHead?.rows[table.tHead.rows.length - 1]?.cells ?? [])];
  const page = [...(body?.rows ?? [])];
  if (page.length < SHORTEST || heads.length === 0 || table.querySelector("[rowspan], [colspan]")) return;
  heads.forEach((head, place) => {
    if (text(head) === "") return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.title = "sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      if (order !== null) head.setAttribute("aria-sort", order ?? "ascending");
      const by = compare(page.map((row) => row.cells[place]));
      const sign = order === "descending" ? -1 : 1;
      const rows = order !== null ? [...page].sort((a, b) => sign * by(a.cells[place], b.cells[place])) : page;
      body.append(...rows);
    });
  });
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".bd-article table").forEach(sortable);
});
