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
// Parallel coordinates: the line under the pointer is told, ranges along the axes keep those that pass there.
(() => {
  const REACH = 12; // units of the figure

  for (const svg of document.querySelectorAll("svg.parallel")) {
    const told = svg.closest("figure").querySelector(".told");
    const grips = [...svg.querySelectorAll(".grip")];
    const at = grips.map((grip) => +grip.getAttribute("x") + +grip.getAttribute("width") / 2);
    const low = +grips[0].getAttribute("y");
    const high = low + +grips[0].getAttribute("height");
    const lines = [...svg.querySelectorAll(".line")].map((node) => ({
      node, y: node.dataset.y.split(" ").map((each) => (each === "-" ? null : +each)),
    }));
    const ranges = grips.map(() => null);
    let hot = null;
    let dragged = null;

    const place = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());

    function tell(line) {
      hot?.node.classList.remove("hot");
      hot = line;
      svg.classList.toggle("hot", line !== null);
      line?.node.classList.add("hot");
      told.textContent = line === null ? "\u00a0" : line.node.dataset.told;
    }

    function keep() {
      grips.forEach((grip, i) => {
        const shown = grip.previousElementSibling;
        const [top, bottom] = ranges[i] ?? [0, 0];
        shown.setAttribute("y", top);
        shown.setAttribute("height", bottom - top);
      });
      let count = 0;
      for (const { node, y } of lines) {
        const passes = ranges.every((range, i) => range === null || (y[i] !== null && y[i] >= range[0] && y[i] <= range[1]));
        node.classList.toggle("off", !passes);
        count += passes;
      }
      tell(null);
      if (ranges.some((range) => range !== null)) told.textContent = `${count} of ${lines.length} lines pass there.`;
    }

    const kept = () => lines.filter(({ node }) => !node.classList.contains("off"));

    function nearest({ x, y }) {
      const found = at.findIndex((each) => each >= x);
      const right = found < 0 ? at.length - 1 : Math.max(found, 1);
      const share = (x - at[right - 1]) / (at[right] - at[right - 1]);
      let best = null;
      let reach = REACH;
      for (const line of kept()) {
        const [a, b] = [line.y[right - 1], line.y[right]];
        if (a === null || b === null || share < -0.1 || share > 1.1) continue;
        const distance = Math.abs(a + share * (b - a) - y);
        if (distance < reach) [best, reach] = [line, distance];
      }
      return best;
    }

    svg.addEventListener("pointermove", (event) => {
      const here = place(event);
      if (dragged === null) {
        const best = nearest(here);
        if (best !== hot) tell(best);
        return;
      }
      const y = Math.min(Math.max(here.y, low), high);
      ranges[dragged.axis] = Math.abs(y - dragged.from) < 4 ? null : [Math.min(y, dragged.from), Math.max(y, dragged.from)];
      keep();
    });
    grips.forEach((grip, axis) => {
      grip.addEventListener("pointerdown", (event) => {
        dragged = { axis, from: place(event).y };
        grip.setPointerCapture(event.pointerId);
        ranges[axis] = null;
        keep();
        event.preventDefault();
      });
      for (const end of ["pointerup", "pointercancel"]) grip.addEventListener(end, () => { dragged = null; });
    });
    svg.addEventListener("pointerdown", (event) => { if (dragged === null) tell(nearest(place(event))); });
    svg.addEventListener("pointerleave", () => { if (dragged === null && hot !== null) tell(null); });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const some = kept();
      if (step && some.length) tell(some[(some.indexOf(hot) + (hot === null && step < 0 ? 0 : step) + some.length) % some.length]);
      else if (event.key === "Escape") { ranges.fill(null); keep(); }
      else return;
      event.preventDefault();
    });
    svg.addEventListener("blur", () => { if (hot !== null) tell(null); });
  }
})();
