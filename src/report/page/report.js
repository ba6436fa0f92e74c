
"use strict";
// Sorts a table by a column, within each group of rows; what has no value stands last.
for (const box of document.querySelectorAll(".sortable")) {
  const heads = box.querySelectorAll(":scope > table > thead > tr:last-child > th");
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.setAttribute("aria-sort", "none");
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const cell = row.cells[column];
        const number = cell.dataset.value;
        if (number !== undefined) return number === "" ? null : Number(number);
        const text = (cell.querySelector("summary") || cell).textContent.trim();
        return text === "" ? null : text;
      };
      for (const body of box.querySelector("table").tBodies) {
        const rows = [...body.rows].filter((row) => row.cells.length === heads.length);
        const order = rows.map((row, place) => ({ row, place, value: value(row) }));
        order.sort((a, b) => {
          if (a.value === null || b.value === null) {
            return (a.value === null) - (b.value === null) || a.place - b.place;
          }
          const both = typeof a.value === "number" && typeof b.value === "number";
          const way = both ? a.value - b.value : String(a.value).localeCompare(String(b.value), "en", { numeric: true });
          return (down ? -way : way) || a.place - b.place;
        });
        order.forEach((one) => body.append(one.row));
      }
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        sort();
      }
    });
  });
}
// One panel of sources at a time; Escape closes it.
const panels = [...document.querySelectorAll("td > details")];
for (const panel of panels) {
  panel.addEventListener("toggle", () => {
    if (panel.open) panels.forEach((other) => (other.open = other === panel));
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") panels.forEach((panel) => (panel.open = false));
});
