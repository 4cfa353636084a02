// Sort the table of runs by the clicked column: numbers by value, the rest as text; empty cells last.
const table = document.getElementById("runs");
const key = (row, i) => {
  const cell = row.cells[i];
  return cell.dataset.v !== undefined ? Number(cell.dataset.v) : cell.textContent;
};
for (const [i, head] of [...table.tHead.rows[0].cells].entries()) {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const x = key(a, i), y = key(b, i);
      if ((x === "") !== (y === "")) return x === "" ? 1 : -1;
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  });
}
