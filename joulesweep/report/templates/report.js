"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);

// Charts: each plot is as wide as its place on the page. Colours are variables of the style sheet.
const drawn = [];  // {figure, view}
const hidden = {}, picked = new Set();
const look = byId("look") && JSON.parse(byId("look").textContent);
const oneColumn = window.matchMedia("screen and (max-width: 47rem)");

function draw(element) {
  const {figure, plot} = element.dataset;
  const spec = JSON.parse(byId("plots-" + figure).textContent)[plot];
  for (const param of spec.params ?? []) if (param.name === "narrow") param.value = element.clientWidth < 560;
  const bare = element.closest(".shared") && plot > 0 && !oneColumn.matches;
  const config = {...look, legend: {...look.legend, columns: element.clientWidth < 500 ? 2 : 4}};
  if (element.closest("figure").querySelector(".legend")) config.legend.disable = true;
  if (bare) config.axisY = {labels: false};
  return vegaEmbed(element, spec, {renderer: "svg", actions: false, config, tooltip: {theme: "custom"}}).then(({view}) => {
    drawn.push({figure, view});
    element.querySelector("svg").setAttribute("aria-hidden", "true");
    if (spec.params?.some((param) => param.name === "picked")) {
      view.addEventListener("click", (event, item) => { if (item?.datum?.i) pick(item.datum.i, !picked.has(item.datum.i)); });
    }
  }).catch((error) => { element.textContent = "This chart failed: " + error.message; console.error(error); });
}
const views = all(".view");
const ready = Promise.all(views.map(draw)).then(() => { document.documentElement.dataset.drawn = drawn.length; });
oneColumn.addEventListener("change", () => { drawn.splice(0).forEach(({view}) => view.finalize()); views.forEach(draw); });
function fit() { for (const {view} of drawn) { const width = view.container().clientWidth; if (width) view.width(width).run(); } }
function printing(on) { document.body.style.width = on ? "728px" : ""; fit(); }  // A4 without its margins
window.addEventListener("beforeprint", () => printing(true));
window.addEventListener("afterprint", () => printing(false));

function signal(name, value, figure) {
  for (const chart of drawn) {
    if (figure && chart.figure !== figure) continue;
    try { chart.view.signal(name, value).run(); } catch { /* this chart has no such control */ }
  }
}

// Legends: a button hides the marks of its value.
for (const button of all(".legend button")) {
  button.addEventListener("click", () => {
    const figure = button.closest("figure"), name = figure.id.replace("figure-", "");
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    hidden[name] = all('.legend button[aria-pressed="false"]', figure).map((other) => other.dataset.value);
    signal("hidden", hidden[name], name);
  });
}

// The table: rows beyond the first ones are made when they are needed.
const table = byId("all"), body = table?.tBodies[0], filter = byId("filter");
let rest = byId("rest") ? JSON.parse(byId("rest").textContent) : [];

function rowOf([cell, name, entries]) {
  const row = document.createElement("tr");
  row.dataset.cell = cell;
  const head = row.appendChild(document.createElement("th"));
  head.scope = "row"; head.className = "text";
  const label = head.appendChild(document.createElement("label")), box = label.appendChild(document.createElement("input"));
  box.type = "checkbox"; box.checked = picked.has(cell);
  label.append(" " + name);
  entries.forEach(([text, remark, value], i) => {
    const entry = row.appendChild(document.createElement("td"));
    entry.className = table.tHead.rows[0].cells[i + 1].className;
    if (value !== null) entry.dataset.value = value;
    entry.append(text);
    if (remark) { const span = entry.appendChild(document.createElement("span")); span.className = "interval"; span.textContent = remark; }
  });
  return row;
}
function complete() {
  if (!rest.length) return;
  body.append(...rest.map(rowOf));
  rest = [];
  byId("all-rows").hidden = true;
}
byId("all-rows")?.addEventListener("click", () => { complete(); tell(); });
function tell() {
  const shown = [...body.rows].filter((row) => !row.hidden).length;
  byId("count").textContent = `${shown.toLocaleString("en")} of ${(body.rows.length + rest.length).toLocaleString("en")} shown`;
}
filter?.addEventListener("input", () => {
  complete();
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  tell();
});
byId("more")?.addEventListener("click", (event) => {
  const on = table.classList.toggle("all-columns");
  event.currentTarget.setAttribute("aria-pressed", on);
});
for (const button of all("table.sortable thead button")) {
  const heading = button.parentElement;
  button.addEventListener("click", () => {
    if (heading.closest("table") === table) complete();
    const rows = heading.closest("table").tBodies[0];
    const down = heading.getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
    const key = (row) => row.cells[heading.cellIndex];
    const compare = (a, b) => {
      const x = key(a), y = key(b);
      if (heading.classList.contains("text")) return sign * x.textContent.localeCompare(y.textContent, "en", {numeric: true});
      if (!("value" in x.dataset) || !("value" in y.dataset)) return ("value" in y.dataset) - ("value" in x.dataset);
      return sign * (x.dataset.value - y.dataset.value);
    };
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.append(...[...rows.rows].sort(compare));
  });
}

// Comparing: marks and ticked rows are copied to one small table.
const place = byId("compare");
const hint = place?.innerHTML;
function pick(cell, on) {
  on ? picked.add(cell) : picked.delete(cell);
  if (on) complete();
  for (const row of body.rows) {
    if (row.dataset.cell === cell) { row.querySelector("input").checked = on; row.classList.toggle("picked", on); }
  }
  signal("picked", [...picked]);
  compare();
}
body?.addEventListener("change", (event) => {
  const row = event.target.closest("tr");
  if (row) pick(row.dataset.cell, event.target.checked);
});
function compare() {
  if (!place) return;
  place.innerHTML = hint;
  if (!picked.size) return;
  const copy = document.createElement("table");
  copy.createCaption().textContent = "Compared";
  const head = copy.createTHead().insertRow();
  for (const heading of table.tHead.rows[0].cells) {
    if (heading.classList.contains("more")) continue;
    const cell = head.appendChild(document.createElement("th"));
    cell.scope = "col"; cell.className = heading.className; cell.textContent = heading.textContent;
  }
  const rows = copy.createTBody();
  for (const cell of picked) {
    const row = [...body.rows].find((one) => one.dataset.cell === cell);
    if (!row) continue;
    const mine = rows.insertRow();
    for (const entry of row.cells) {
      if (entry.classList.contains("more")) continue;
      const clone = mine.appendChild(entry.cloneNode(true));
      clone.querySelector("input")?.remove();
    }
    const close = mine.cells[0].appendChild(document.createElement("button"));
    close.type = "button"; close.textContent = "×"; close.setAttribute("aria-label", "Remove " + row.querySelector("label").textContent.trim());
    close.addEventListener("click", () => pick(cell, false));
  }
  const scroll = place.appendChild(document.createElement("div"));
  scroll.className = "scroll"; scroll.tabIndex = 0; scroll.setAttribute("role", "region"); scroll.setAttribute("aria-label", "Compared configurations");
  scroll.append(copy);
}
