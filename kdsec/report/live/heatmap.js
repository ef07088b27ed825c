// The picture stays; over each of its cells lies a button without a face that says what the cell stands for.

bringToLife("heatmap", (data, panel, root) => {
  const name = make("strong");
  const says = announcement();
  const buttons = data.cells.map((cell, index) => {
    const [left, top, width, height] = cell.box.map((part) => `${100 * part}%`);
    const style = `left: ${left}; top: ${top}; width: ${width}; height: ${height}`;
    const button = make("button", { type: "button", class: "kdsec-cell", style, "aria-label": cell.name });
    button.addEventListener("pointerenter", () => show(index));
    button.addEventListener("focus", () => show(index));
    button.addEventListener("click", () => show(index)); // a tap does not focus a button everywhere
    button.addEventListener("keydown", (event) => move(event, index));
    return button;
  });

  const show = (index) => {
    buttons.forEach((button, other) => {
      button.tabIndex = other === index ? 0 : -1; // one stop for the tabulator, arrows go from cell to cell
      button.classList.toggle("kdsec-chosen", other === index);
    });
    name.textContent = data.cells[index].name;
    says.textContent = data.cells[index].says;
  };

  /** The nearest cell in the direction of an arrow key, sideways steps counting double. */
  const move = (event, index) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const middle = ({ box: [x, y, w, h] }) => [x + w / 2, y + h / 2];
    const [x, y] = middle(data.cells[index]);
    const distances = data.cells.map((cell) => {
      const [dx, dy] = [middle(cell)[0] - x, middle(cell)[1] - y];
      const [ahead, aside] = [dx * way[0] + dy * way[1], Math.abs(dx * way[1]) + Math.abs(dy * way[0])];
      return ahead > 1e-6 ? ahead + 2 * aside : Infinity;
    });
    const nearest = Math.min(...distances);
    if (nearest < Infinity) buttons[distances.indexOf(nearest)].focus();
  };

  const over = make("div", { class: "kdsec-over", role: "group", "aria-label": "cells of the heat map" });
  over.append(...buttons);
  buttons.forEach((button, index) => { button.tabIndex = index === 0 ? 0 : -1; });
  root.querySelector(".kdsec-frame").append(over);
  says.textContent = "Point at a cell, tap it, or go there with the tabulator and the arrow keys.";
  panel.append(name, " ", says);
});
