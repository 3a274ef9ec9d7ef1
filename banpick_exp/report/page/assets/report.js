"use strict";
// Hover, keyboard and click on the figures. Everything it shows is in the page; without it the tables still say it all.
(() => {
  const REACH = 24; // how near a pointer must be to a mark, in units of the figure
  const { fields, points, rest } = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const absent = { value: "overall", checked: false, addEventListener() {} }; // where the front could not be drawn
  const menu = document.getElementById("domain") ?? absent;
  const closer = document.getElementById("closer") ?? absent;
  let current = null;

  const add = (parent, tag, text) => {
    const node = parent.appendChild(document.createElement(tag));
    if (text !== undefined) node.textContent = text;
    return node;
  };

  function show() {
    for (const pair of document.querySelectorAll(".pair"))
      pair.hidden = pair.dataset.domain !== menu.value || pair.classList.contains("closer") !== closer.checked;
    leave();
  }

  function place(x, y) {
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const right = x + 18 + box.width < innerWidth;
    tip.style.left = `${Math.max(4, right ? x + 18 : x - 18 - box.width)}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 4))}px`;
  }

  function describe(number, x, y) {
    if (number !== current) {
      leave();
      current = number;
      const point = points[number];
      tip.replaceChildren();
      add(tip, "b", point.label);
      if (point.run) add(tip, "div", point.run);
      const list = add(tip, "dl");
      const values = point.numbers[menu.value] ?? [];
      fields.forEach((name, i) => {
        if (values[i] === undefined) return;
        add(list, "dt", name);
        add(list, "dd", values[i]);
      });
      add(tip, "div", "Run it again (click copies):").className = "ask";
      add(tip, "code", point.command);
      mark(number, true);
    }
    place(x, y);
  }

  function mark(number, on) {
    for (const node of document.querySelectorAll(`[data-p="${number}"]`)) node.classList.toggle("hot", on);
    document.querySelector(`[data-row="${number}"]`)?.closest("tr").classList.toggle("hot", on);
  }

  function leave() {
    if (current !== null) mark(current, false);
    current = null;
    tip.hidden = true;
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = add(document.body, "textarea", text); // pages opened from a file may not have the clipboard
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  }

  const said = (done) => (done ? "Copied:" : "The browser does not let a page copy; select it in the table under Provenance:");

  async function take(number) {
    const done = await copy(points[number].command);
    const ask = tip.querySelector(".ask");
    if (ask) ask.textContent = said(done);
  }

  for (const svg of document.querySelectorAll("svg.panel")) {
    const marks = [...svg.querySelectorAll(".point")].map((node) => ({
      node, number: +node.dataset.p, x: +node.getAttribute("x"), y: +node.getAttribute("y"),
    })).filter((mark) => points[mark.number]);
    marks.sort((a, b) => a.x - b.x || a.y - b.y);
    const nearest = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let best = null;
      let reach = REACH;
      for (const each of marks) {
        const distance = Math.hypot(each.x - at.x, each.y - at.y);
        if (distance < reach) [best, reach] = [each, distance];
      }
      return best;
    };
    const follow = (event) => {
      const best = nearest(event);
      if (best) describe(best.number, event.clientX, event.clientY);
      else leave();
    };
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerdown", follow);
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("click", (event) => {
      const best = nearest(event);
      if (best) take(best.number);
    });
    marks.forEach(({ node, number }, i) => {
      node.setAttribute("tabindex", i === 0 ? "0" : "-1"); // one stop with Tab, the arrow keys go on from there
      node.setAttribute("role", "button");
      node.setAttribute("aria-label", `${points[number].label}: copy its command`);
      node.addEventListener("focus", () => {
        const box = node.getBoundingClientRect();
        describe(number, box.right, box.bottom);
      });
      node.addEventListener("blur", leave);
      node.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (step) marks[(i + step + marks.length) % marks.length].node.focus();
        else if (event.key === "Enter" || event.key === " ") take(number);
        else if (event.key === "Escape") leave();
        else return;
        event.preventDefault();
      });
    });
  }

  for (const button of document.querySelectorAll("button.copy"))
    button.addEventListener("click", async () => {
      const number = button.dataset.copy; // of a point; else the command stands before the button
      const text = number === undefined ? button.previousElementSibling.textContent : points[+number].command;
      button.textContent = (await copy(text)) ? "copied" : "not allowed here";
      setTimeout(() => { button.textContent = "copy"; }, 2000);
    });

  for (const details of document.querySelectorAll("details.rest"))
    details.addEventListener("toggle", () => {
      if (details.open && !details.querySelector("table")) unfold(details, rest[+details.dataset.rest]);
    });

  function unfold(details, { caption, head, rows }) {
    const table = document.createElement("table");
    add(table, "caption", caption);
    const line = add(add(table, "thead"), "tr");
    for (const name of head) add(line, "th", name).scope = "col";
    const body = add(table, "tbody");
    for (const [label, ...cells] of rows) {
      const row = add(body, "tr");
      add(row, "th", label).scope = "row";
      for (const cell of cells) add(row, "td", cell);
    }
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "group");
    scroll.setAttribute("aria-label", caption);
    scroll.append(table);
    details.querySelector("p").remove();
    details.append(scroll);
    banpickTable(table);
  }

  for (const image of document.querySelectorAll(".heat img")) {
    let values = null;
    const [rows, columns] = image.dataset.size.split(" ").map(Number);
    const [low, high] = image.dataset.limits.split(" ").map(Number);
    const names = image.dataset.rows ? image.dataset.rows.split("\n") : null;
    image.addEventListener("pointermove", (event) => {
      values ??= Uint8Array.from(atob(image.dataset.values), (letter) => letter.charCodeAt(0));
      const box = image.getBoundingClientRect();
      const clamp = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
      const row = clamp((event.clientY - box.top) / box.height, rows);
      const column = clamp((event.clientX - box.left) / box.width, columns);
      const at = 2 * (row * columns + column);
      const value = low + ((values[at] + 256 * values[at + 1]) / 65535) * (high - low);
      tip.replaceChildren();
      add(tip, "b", `${names ? names[row] : `layer ${row}`}, ${image.dataset.column} ${column}`);
      add(tip, "div", `${value.toPrecision(3)} ${image.dataset.unit}`);
      place(event.clientX, event.clientY);
    });
    image.addEventListener("pointerleave", leave);
  }

  menu.addEventListener("change", show);
  closer.addEventListener("change", show);
  show();
})();
