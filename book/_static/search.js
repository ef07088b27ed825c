// Sphinx shows beside a search result the text at the place that it points to. An index entry points to an
// empty place, and Sphinx stops there with an error; show the text of the page instead.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return; // not the page that searches
  const summary = Search.makeSearchSummary;
  Search.makeSearchSummary = (text, words, anchor) =>
    summary(text, words, anchor) ?? summary(text, words) ?? document.createElement("p");
});
