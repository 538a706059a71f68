// A field above every long table that leaves the rows with all of its words.
document$.subscribe(() => {
  for (const table of document.querySelectorAll("article table:not([class])")) {
    const rows = [...table.querySelectorAll("tbody tr")];
    if (rows.length < 12 || table.dataset.filtered) continue;
    table.dataset.filtered = "yes";
    const field = document.createElement("input");
    field.type = "search";
    field.className = "row-filter";
    field.placeholder = "Filter rows";
    field.setAttribute("aria-label", "Filter the rows of this table");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
    (table.closest(".md-typeset__scrollwrap") ?? table).before(field);
  }
});
