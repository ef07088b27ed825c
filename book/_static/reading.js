// Figures are enlarged by a tap or a click, or with the keyboard: the picture fills the window and can be scrolled.
document.addEventListener("DOMContentLoaded", () => {
  const pictures = [...document.querySelectorAll(".bd-article :is(figure, .cell_output) img")]
    .filter((picture) => !picture.closest("a, label, .kdsec-live, .cards"));
  if (pictures.length === 0) return;
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", "figure, enlarged");
  document.body.append(dialog);
  dialog.addEventListener("click", () => dialog.close());

  const enlarge = (picture) => {
    const shown = new Image();
    shown.src = picture.src;
    shown.alt = picture.alt;
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "close";
    dialog.replaceChildren(close, shown);
    dialog.showModal();
  };
  for (const picture of pictures) {
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.title = "enlarge";
    picture.addEventListener("click", () => enlarge(picture));
    picture.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      enlarge(picture);
    });
  }
});

// The title of a solution names its exercise as a link. Shut, the whole title is a button that opens it: the
// link must not lead away from there, and an exercise stands right above its solution anyway.
document.addEventListener("DOMContentLoaded", () => {
  for (const link of document.querySelectorAll(".bd-article .solution > .admonition-title a")) {
    link.replaceWith(...link.childNodes);
  }
});
