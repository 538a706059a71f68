"use strict";
(() => {
  const form = document.querySelector("form");
  const answer = document.getElementById("answer");
  const status = document.getElementById("status");
  const copy = document.getElementById("copy");
  const numbers = document.createElement("div");
  numbers.id = "numbers";
  numbers.className = "numbers";
  numbers.setAttribute("role", "tooltip");
  numbers.hidden = true;
  document.body.append(numbers);
  copy.hidden = false;

  // What was typed and chosen as text after the address's "#"; the token is never among it.
  const kept = ["prompt", "response", "other", "credit", "objective"];
  function state() {
    const found = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      if (kept.includes(name) && value) found.append(name, value);
    }
    return found;
  }

  function restore() {
    const said = new URLSearchParams(location.hash.slice(1));
    if (!said.has("response") && !said.has("prompt")) return false;
    for (const name of ["prompt", "response", "other"]) {
      form.elements.namedItem(name).value = said.get(name) ?? "";
    }
    const missing = [];
    for (const name of ["credit", "objective"]) {
      const boxes = [...form.querySelectorAll(`input[name=${name}]`)];
      const wanted = said.getAll(name);
      if (!said.has("credit")) continue; // what is chosen first stays chosen
      for (const box of boxes) box.checked = wanted.includes(box.value);
      missing.push(...wanted.filter((one) => !boxes.some((box) => box.value === one)));
    }
    const token = form.elements.namedItem("token");
    if (token && !token.value) {
      status.textContent = "Type the token to see what the link shows.";
      token.focus();
    } else {
      score(missing.length ? `Not on offer here: ${missing.join(", ")}.` : "");
    }
    return true;
  }

  // The server draws the answer; it is taken out of the page that it sends.
  let asking = null;
  async function score(note = "") {
    asking?.abort();
    const mine = (asking = new AbortController());
    history.replaceState(null, "", `#${state()}`);
    answer.setAttribute("aria-busy", "true");
    status.textContent = "Scoring ...";
    try {
      const body = new URLSearchParams(new FormData(form));
      const reply = await fetch("/", { method: "POST", body, signal: mine.signal });
      const text = await reply.text();
      const page = new DOMParser().parseFromString(text, "text/html").getElementById("answer");
      hide();
      if (page) answer.replaceChildren(...document.adoptNode(page).childNodes);
      else problem(text);
      prepare();
      status.textContent = answer.querySelector(".problem") ? note : `${note} Scored.`.trim();
    } catch (error) {
      if (mine.signal.aborted) return;
      problem(`The server does not answer: ${error.message}`);
      status.textContent = "";
    } finally {
      if (mine === asking) answer.removeAttribute("aria-busy");
    }
  }

  function problem(text) {
    const line = document.createElement("p");
    line.className = "problem";
    line.setAttribute("role", "alert");
    line.textContent = text;
    answer.replaceChildren(line);
  }

  // A table of tokens becomes a grid: one stop of the Tab key, arrows move inside.
  function prepare() {
    for (const hint of answer.querySelectorAll(".with-script")) hint.hidden = false;
    for (const rows of answer.querySelectorAll(".tokencredit-heatmap .rows")) {
      rows.setAttribute("role", "grid");
      rows.setAttribute("aria-readonly", "true");
      for (const cell of rows.querySelectorAll("[role=cell]")) {
        cell.setAttribute("role", "gridcell");
        cell.tabIndex = -1;
        cell.dataset.score = cell.title;
        cell.setAttribute("aria-label", `${cell.textContent} ${cell.title}`);
        cell.removeAttribute("title");
      }
      const first = rows.querySelector("[role=gridcell]");
      if (first) first.tabIndex = 0;
    }
  }

  const cellsOf = (row) => [...row.querySelectorAll("[role=gridcell]")];
  const cellAt = (target) => target.closest?.("[role=gridcell]");

  function placeOf(cell) {
    const row = cell.closest(".row");
    const rows = [...row.parentElement.children];
    return { rows, row: rows.indexOf(row), index: cellsOf(row).indexOf(cell) };
  }

  let shown = null;
  function show(cell) {
    if (shown === cell) return;
    hide();
    shown = cell;
    const { rows, row, index } = placeOf(cell);
    const head = document.createElement("b");
    head.textContent = cell.textContent;
    const where = document.createElement("span");
    where.textContent = `  ${index + 1} of ${cellsOf(rows[row]).length}`;
    const list = document.createElement("dl");
    rows.forEach((each, number) => {
      const same = cellsOf(each)[index];
      same.classList.add("same");
      const name = document.createElement("dt");
      name.textContent = each.querySelector(".name").firstChild.data;
      const score = document.createElement("dd");
      score.textContent = same.dataset.score;
      for (const part of [name, score]) {
        part.classList.toggle("here", number === row);
      }
      name.classList.toggle("part", each.classList.contains("part"));
      list.append(name, score);
    });
    numbers.replaceChildren(head, where, list);
    numbers.hidden = false;
    cell.setAttribute("aria-describedby", "numbers");
    place(cell);
  }

  function place(cell) {
    const at = cell.getClientRects()[0] ?? cell.getBoundingClientRect();
    const width = numbers.offsetWidth;
    const height = numbers.offsetHeight;
    const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - width - 8));
    const below = at.bottom + height < window.innerHeight || at.top < height;
    numbers.style.left = `${left + window.scrollX}px`;
    numbers.style.top = `${(below ? at.bottom + 2 : at.top - height - 2) + window.scrollY}px`;
  }

  function hide() {
    if (!shown) return;
    for (const same of answer.querySelectorAll(".same")) same.classList.remove("same");
    shown.removeAttribute("aria-describedby");
    numbers.hidden = true;
    shown = null;
  }

  function focus(cell) {
    const grid = cell.closest("[role=grid]");
    for (const one of grid.querySelectorAll("[tabindex='0']")) one.tabIndex = -1;
    cell.tabIndex = 0;
    cell.focus();
  }

  function moved(key, cell) {
    const { rows, row, index } = placeOf(cell);
    const line = cellsOf(rows[row]);
    switch (key) {
      case "ArrowRight": return line[index + 1];
      case "ArrowLeft": return line[index - 1];
      case "Home": return line[0];
      case "End": return line[line.length - 1];
      case "ArrowDown": return rows[row + 1] && cellsOf(rows[row + 1])[index];
      case "ArrowUp": return rows[row - 1] && cellsOf(rows[row - 1])[index];
      default: return null;
    }
  }

  answer.addEventListener("keydown", (event) => {
    const cell = cellAt(event.target);
    if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
    const next = moved(event.key, cell);
    if (next === null) return;
    event.preventDefault();
    if (next) focus(next);
  });
  answer.addEventListener("focusin", (event) => {
    const cell = cellAt(event.target);
    if (cell) show(cell);
  });
  answer.addEventListener("focusout", hide);
  document.addEventListener("mouseover", (event) => {
    const cell = cellAt(event.target);
    if (cell) show(cell);
    else if (!numbers.contains(event.target)) hide();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    score();
  });
  let waiting = 0;
  form.addEventListener("change", (event) => {
    if (event.target.type !== "checkbox" || !answer.querySelector(".answer")) return;
    clearTimeout(waiting);
    waiting = setTimeout(score, 200);
  });
  copy.addEventListener("click", async () => {
    history.replaceState(null, "", `#${state()}`);
    try {
      await navigator.clipboard.writeText(location.href);
      status.textContent = "Link copied.";
    } catch {
      // Clipboards are for safe origins only: the address line has the link as well.
      status.textContent = "Copy the link from the address line.";
    }
  });
  window.addEventListener("hashchange", restore);
  prepare();
  if (!restore() && !answer.firstElementChild) form.elements.namedItem("prompt").focus();
})();
