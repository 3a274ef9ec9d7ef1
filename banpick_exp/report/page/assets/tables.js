"use strict";
// Tables that are sorted by their heads and filtered by words. Without it they stand as they were written.
function banpickTable(table) {
  const FILTERED = 8; // rows; of more a box asks which
  const SUB_TASKS = 5; // column of the first, in tables that fold them
  const scroll = table.closest(".scroll");
  const body = table.tBodies[0];
  const written = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const caption = table.caption?.textContent ?? "";
  const words = (row, column) => row.cells[column]?.textContent.trim() ?? "";

  // "\u25b2 beats k=4 +1.3 [+0.2, +2.4]" is +1.3: the number before an interval, else the one that the text begins with.
  function number(text) {
    const plain = text.replace(/\u2212/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
    const found = /([-+]?\d*\.?\d+)x? ?\[/.exec(plain) ?? /^[(\u25b2\u25bc\u26a0 ]*([-+]?\d*\.?\d+(?:e[-+]?\d+)?)/.exec(plain);
    return found ? +found[1] : NaN;
  }

  function keys(column) {
    const texts = written.map((row) => words(row, column));
    const numbers = texts.map(number);
    const said = texts.map((text) => text !== "" && text !== "-");
    const counted = numbers.filter((value, i) => said[i] && !Number.isNaN(value)).length;
    const numeric = column > 0 && counted > 0 && counted >= said.filter(Boolean).length / 2;
    const there = (i) => (numeric ? !Number.isNaN(numbers[i]) : said[i]);
    const compare = (a, b) => (numeric ? numbers[a] - numbers[b] : texts[a].localeCompare(texts[b], undefined, { numeric: true }));
    return { numeric, there, compare };
  }

  function sort(head, column) {
    const { numeric, there, compare } = keys(column);
    const turns = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
    const next = { undefined: turns[0], [turns[0]]: turns[1] }[head.getAttribute("aria-sort") ?? undefined];
    for (const each of heads) each.removeAttribute("aria-sort");
    const order = written.map((_, i) => i);
    if (next) {
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      order.sort((a, b) => there(b) - there(a) || (there(a) ? sign * compare(a, b) : 0) || a - b); // what has no value is last
    }
    body.append(...order.map((i) => written[i]));
  }

  if (written.length > 1 && !scroll?.classList.contains("best"))
    heads.forEach((head, column) => {
      if (written[0].cells[column]?.querySelector("button")) return; // a column of buttons has no order
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(head, column));
      head.append(button);
    });

  const tools = document.createElement("p");
  tools.className = "tools";
  if (written.length > FILTERED) {
    const asked = document.createElement("input");
    const count = document.createElement("span");
    asked.type = "search";
    asked.placeholder = "only rows with ...";
    asked.setAttribute("aria-label", `${caption}: only rows with these words`);
    count.setAttribute("role", "status");
    asked.addEventListener("input", () => {
      const parts = asked.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of written) {
        const text = row.textContent.toLowerCase();
        row.hidden = !parts.every((part) => text.includes(part));
        shown += !row.hidden;
      }
      count.textContent = parts.length ? `${shown} of ${written.length} rows` : "";
    });
    tools.append(asked, count);
  }
  if (scroll?.classList.contains("subtasks")) {
    const folded = heads.length - SUB_TASKS + 1;
    const button = document.createElement("button");
    button.type = "button";
    const say = (closed) => {
      table.classList.toggle("folded", closed);
      button.setAttribute("aria-expanded", String(!closed));
      button.textContent = closed ? `show ${folded} sub-tasks` : `hide ${folded} sub-tasks`;
    };
    button.addEventListener("click", () => say(!table.classList.contains("folded")));
    say(true);
    tools.append(button);
  }
  if (tools.childNodes.length) scroll?.before(tools);
}

for (const table of document.querySelectorAll(".scroll table")) {
  const texts = document.createTreeWalker(table, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) // an interval is not broken
    texts.currentNode.data = texts.currentNode.data.replace(/\[[^\]]*, [^\]]*\]/g, (found) => found.replaceAll(", ", ",\u00a0"));
  banpickTable(table);
}
