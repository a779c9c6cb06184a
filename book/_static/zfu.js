// Filters and sorting of the results page, and boxes that scroll. Without this script every row shows.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".zfu.results").forEach((place) => {
    const form = place.querySelector(".zfu-filter");
    const table = place.querySelector("table");
    const shown = place.querySelector(".zfu-shown");
    if (!form || !table) return;
    const rows = [...table.tBodies[0].rows];
    const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

    const filter = () => {
      const wanted = Object.fromEntries(new FormData(form));
      const text = wanted.text.trim().toLowerCase();
      let count = 0;
      for (const row of rows) {
        const fits = ["paper", "profile", "verdict"].every((key) => !wanted[key] || row.dataset[key] === wanted[key]);
        row.hidden = !(fits && words.get(row).includes(text));
        count += !row.hidden;
      }
      shown.textContent = `${count} of ${rows.length} rows`;
      const query = new URLSearchParams(Object.entries(wanted).filter(([, value]) => value));
      // A page opened from disk may not change its address.
      if (location.protocol.startsWith("http")) {
        history.replaceState(null, "", location.pathname + (query.size ? `?${query}` : "") + location.hash);
      }
    };

    // An address like results.html?verdict=inconclusive can be shared.
    for (const [key, value] of new URLSearchParams(location.search)) {
      if (form.elements[key]) form.elements[key].value = value;
    }
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter));
    filter();

    const compare = new Intl.Collator("en", { numeric: true }).compare;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.className = "zfu-sort";
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].textContent;
        rows.sort((a, b) => compare(key(a), key(b)) * (down ? -1 : 1));
        table.tBodies[0].append(...rows);
      });
    });
  });
});

// Tables and figures scroll sideways in their own box: let the keyboard reach a box that does, and mark where more is.
document.addEventListener("DOMContentLoaded", () => {
  const boxes = [...document.querySelectorAll(".zfu-scroll, .zfu-frame")];
  const look = (box) => {
    const hidden = box.scrollWidth - box.clientWidth;
    box.classList.toggle("zfu-more", hidden - box.scrollLeft > 2);
    if (hidden > 2 && !box.hasAttribute("tabindex")) {
      const name = box.querySelector("caption")?.textContent || (box.matches(".zfu-frame") ? "Figure" : "Table");
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", name);
    }
  };
  const watch = new ResizeObserver((entries) => entries.forEach((entry) => look(entry.target)));
  for (const box of boxes) {
    box.addEventListener("scroll", () => look(box), { passive: true });
    watch.observe(box);
  }
});
