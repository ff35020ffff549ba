"use strict";
// Filters over lists that are on the page already: rows are hidden and shown, nothing is made or fetched.
(() => {
  const bar = document.getElementById("filters");
  if (!bar) return;
  const rows = [...document.querySelectorAll(".flip")];
  const said = document.getElementById("filtered");
  const words = new Map();
  const textOf = (row) => {
    if (!words.has(row)) words.set(row, row.textContent.toLowerCase());
    return words.get(row);
  };
  const apply = () => {
    const picked = [...bar.querySelectorAll("select")].filter((s) => s.value);
    const wanted = bar.querySelector("input").value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = picked.every((s) => row.dataset[s.name] === s.value) && (!wanted || textOf(row).includes(wanted));
      row.hidden = !fits;
      shown += fits;
    }
    said.textContent = picked.length || wanted ? `${shown} of ${rows.length} listed items fit` : "";
    for (const list of document.querySelectorAll(".flips")) {
      list.classList.toggle("none", !list.querySelector(".flip:not([hidden])"));
    }
  };
  bar.hidden = false;
  bar.addEventListener("input", apply);
})();
