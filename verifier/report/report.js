"use strict";
(() => {
  const text = document.getElementById("f-text");
  const choices = ["family", "step", "verdict"].map((name) => document.getElementById("f-" + name));
  const rows = [...document.querySelectorAll("#checks-t tbody tr")];
  const words = rows.map((row) => row.textContent.toLowerCase());
  const count = document.getElementById("f-count");

  function filter() {
    const wanted = text.value.trim().toLowerCase();
    const [family, step, verdict] = choices.map((choice) => choice.value);
    let shown = 0;
    rows.forEach((row, at) => {
      const id = row.cells[0].textContent;
      const kept =
        (!wanted || words[at].includes(wanted)) &&
        (!family || id.startsWith(family + ".")) &&
        (!step || row.dataset.step === step) &&
        (!verdict || row.dataset.verdict === verdict);
      row.hidden = !kept;
      shown += kept;
    });
    count.textContent = shown + " of " + rows.length;
  }
  text.addEventListener("input", filter);
  choices.forEach((choice) => choice.addEventListener("change", filter));
  text.form.addEventListener("submit", (event) => event.preventDefault());

  const value = (cell) => cell.dataset.v ?? cell.textContent.trim();
  const number = (word) => (word === "" ? NaN : Number(word.replaceAll(",", "")));
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) =>
      head.firstElementChild.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const keyed = [...body.rows].map((row) => [value(row.cells[column]), row]);
        const numeric = keyed.every(([word]) => word === "" || !Number.isNaN(number(word)));
        keyed.sort(([a], [b]) => {
          if (!numeric) return down ? b.localeCompare(a) : a.localeCompare(b);
          const [x, y] = [number(a), number(b)];
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return down ? y - x : x - y;
        });
        body.append(...keyed.map(([, row]) => row));
      }),
    );
  });
})();
