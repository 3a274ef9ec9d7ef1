"use strict";
// Menus that choose among blocks, and the search in flips. It shows and hides; it never makes markup of a text.
(() => {
  const of = (key) => [...document.querySelectorAll(`[data-of="${key}"]`)];

  for (const menu of document.querySelectorAll("select[data-chooses]")) {
    const choose = () => {
      of(menu.dataset.chooses).forEach((block, i) => { block.hidden = i !== +menu.value; });
      document.querySelector(`[data-searches="${menu.dataset.chooses}"]`)?.dispatchEvent(new Event("input"));
    };
    menu.addEventListener("change", choose);
    choose();
  }

  for (const asked of document.querySelectorAll("input[data-searches]")) {
    const key = asked.dataset.searches;
    const said = document.querySelector(`[data-counts="${key}"]`);
    asked.addEventListener("input", () => {
      const text = asked.value.trim().toLowerCase();
      let shown = 0;
      for (const block of of(key))
        for (const flip of block.querySelectorAll(".flip")) {
          flip.hidden = text !== "" && !flip.textContent.toLowerCase().includes(text);
          if (!flip.hidden && !block.hidden) shown += 1;
        }
      said.textContent = text === "" ? "" : `${shown} found`;
    });
  }
})();
