// Sphinx shows beside a search result the text at the place that it points to. An index entry points to an
// empty place, and Sphinx stops there with an error; show the text of the page instead.
// Prose comes before code: the text is taken from prose, and a page that has the words in code alone comes
// after the others (kdsec.css puts what is "in-code" last).
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return; // not the page that searches
  const summary = Search.makeSearchSummary;
  const says = (text, words) => {
    const shown = Search.htmlToText(text).toLowerCase();
    return [...words].some((word) => shown.includes(word.toLowerCase()));
  };
  Search.makeSearchSummary = (text, words, anchor) => {
    const prose = withoutCode(text);
    const inProse = says(prose, words);
    const from = inProse ? prose : text;
    const found = summary(from, words, anchor) ?? summary(from, words) ?? document.createElement("p");
    found.classList.toggle("in-code", !inProse && says(text, words));
    return found;
  };
});

function withoutCode(text) {
  const page = new DOMParser().parseFromString(text, "text/html");
  page.querySelectorAll(".cell_input, .cell_output, div.highlight").forEach((each) => each.remove());
  return page.documentElement.outerHTML;
}
