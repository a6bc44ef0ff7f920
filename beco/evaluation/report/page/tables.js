"use strict";
// A click on a heading sorts; numbers by data-value, what has none last.
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.closest("th"), body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.classList.contains("n") ? head.ariaSort !== "descending" : head.ariaSort === "ascending";
  const number = head.classList.contains("n"), side = down ? -1 : 1;
  const rows = [...body.rows].map(row => {
    const cell = row.cells[column], text = number ? cell.dataset.value : cell.textContent.trim();
    return { row, value: number && text ? Number(text) : text };
  });
  const order = (a, b) => (a === "") - (b === "")
    || side * (number ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  rows.sort((a, b) => order(a.value, b.value)).forEach(item => body.append(item.row));
  head.parentElement.querySelectorAll("th").forEach(other => other.ariaSort = "none");
  head.ariaSort = down ? "descending" : "ascending";
}));

// A link to something folded away unfolds it, with all that lies in it.
const unfold = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target || target.tagName !== "DETAILS") return;
  target.querySelectorAll("details").forEach(inner => inner.open = true);
  target.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", unfold);
document.addEventListener("click", event => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.hash === location.hash) unfold();  // no hashchange the second time
});
unfold();
