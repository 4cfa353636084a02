"use strict";
// Draws everything on the page that is not words: figures and tables, from one JSON text.
//
// What the server has escaped (answer, reproduce) is all that is set as HTML; every other text is
// set as text. Plotly reads some tags in its texts, so what goes there is escaped.

let content = JSON.parse(document.getElementById("content").textContent);
const byId = id => document.getElementById(id);

/** A new element with text and properties. */
function element(tag, text = "", properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

function escapeText(text) {
  return String(text).replace(/[&<>]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" }[c]));
}

// ---- numbers

/** Three digits and a unit: 17300000 as "17.3M". */
function human(value) {
  const units = [[1e9, "G"], [1e6, "M"], [1e3, "K"]];
  const [scale, unit] = units.find(([least]) => Math.abs(value) >= least) ?? [1, ""];
  return `${Number((value / scale).toPrecision(3))}${unit}`;
}

function number(value) {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(3)));
}

// How the page shows a column's values; the names are those of columns.py.
const FORMATS = {
  text: value => value,
  number: number,
  si: human,
  fixed2: value => value.toFixed(2),
  percent: value => `${Math.round(100 * value)}%`,
  percent1: value => (100 * value).toFixed(1),
  ratio: value => `${value.toFixed(2)}x`,
  network: row => content.tables.networks.rows.label[row],
};

function isEmpty(value) {
  return value === null || value === undefined || value === "";
}

function format(kind, value) {
  return isEmpty(value) ? "" : FORMATS[kind](value);
}

// ---- figures

/** The cost that the reader has chosen as the horizontal axis. */
function chosenAxis() {
  return byId("axis")?.value ?? "macs";
}

/** What is shown under the mouse for a network, by its row in the table. */
function networkText(row) {
  const networks = content.tables.networks.rows;
  const lines = [];
  if (networks.stands[row]) lines.push(`<b>${escapeText(networks.stands[row])}</b>`);
  lines.push(escapeText(networks.label[row]));
  if (networks.share_depth[row] !== null) {
    const shares = ["depth", "width", "resolution"].map(
      name => `${name} ${format("percent", networks[`share_${name}`][row])}`);
    lines.push(`shares: ${shares.join(" ")}`);
  }
  const multipliers = ["alpha", "beta", "gamma"].map(
    name => `${name} ${format("number", networks[name][row])}`);
  lines.push(multipliers.join(", "));
  const macs = `${human(networks.macs[row])} MACs (${networks.ratio[row].toFixed(2)}x)`;
  lines.push(`${macs}, ${human(networks.params[row])} params`);
  if (networks.mean[row] !== null) {
    const mean = format("percent1", networks.mean[row]);
    const error = format("percent1", networks.error[row]);
    const best = networks.best[row] === null ? "" : `, P(best) ${networks.best[row].toFixed(2)}`;
    lines.push(`validation ${mean} ± ${error} %${best} (${networks.count[row]} runs)`);
  }
  return lines.join("<br>");
}

/** What is shown under the mouse for a run, by its row in the table. */
function runText(row) {
  const runs = content.tables.runs.rows;
  const network = escapeText(format("network", runs.row[row]));
  return `${network}, seed ${runs.seed[row]}, ${escapeText(runs.status[row])}`;
}

/** A trace with what its `meta` says the tables have: they are on the page once, not in the figures
 *  again (figures/__init__.py lists the keys). */
function filledTrace(trace) {
  const meta = trace.meta;
  const networks = content.tables?.networks.rows;
  if (!meta || !networks) return trace;
  const filled = { ...trace };
  const costs = networks[chosenAxis()];
  if (meta.rows) filled.text = meta.rows.map(networkText);
  if (meta.axis) filled.x = meta.rows.map(row => costs[row]);
  if (meta.costs) filled.x = meta.costs[chosenAxis()] ?? [];
  if (meta.front) {
    const front = meta.front[chosenAxis()];
    filled.x = front.map(row => costs[row]);
    filled.y = front.map(row => 100 * networks.mean[row]);
  }
  if (meta.curves) {
    // a point for each epoch of a run, and the gap behind it
    filled.text = meta.curves.flatMap((run, k) => Array(meta.points[k] + 1).fill(runText(run)));
  }
  return filled;
}

let printing = false; // paper is always light

/** The page's own colours and font, as style sheet and screen have them now. */
function theme() {
  if (printing) return { ink: "#1a1a1a", line: "#d9d9d9", page: "#ffffff" };
  const style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue(name).trim();
  return { ink: colour("--ink"), line: colour("--line"), page: colour("--page") };
}

/** A figure's layout in the page's colours, for its width, with the chosen axis. */
function themedLayout(figure) {
  const { ink, line, page } = theme();
  const layout = structuredClone(figure.figure.layout);
  Object.assign(layout, {
    uirevision: "keep", // what the reader has zoomed stays when the content changes
    paper_bgcolor: page,
    plot_bgcolor: page,
    font: { family: "system-ui, sans-serif", size: 13, color: ink },
    hoverlabel: { bgcolor: page, bordercolor: line, font: { color: ink }, align: "left" },
  });
  if (document.documentElement.clientWidth < 600) {
    layout.margin = { ...layout.margin, l: 45, r: layout.yaxis2 ? 50 : 10 };
    layout.font.size = 10;
  }
  for (const key of Object.keys(layout).filter(name => /^[xy]axis/.test(name)))
    layout[key] = { gridcolor: line, zerolinecolor: line, linecolor: line, ...layout[key] };
  if (layout.ternary) {
    layout.ternary.bgcolor = page;
    for (const side of ["aaxis", "baxis", "caxis"])
      layout.ternary[side] = { gridcolor: line, linecolor: ink, ...layout.ternary[side] };
  }
  if (figure.control) {
    layout.xaxis.uirevision = chosenAxis();
    const budgetsAxis = Object.keys(content.axes)[0];
    if (chosenAxis() !== budgetsAxis) layout.shapes = layout.annotations = []; // the budget's band
    layout.xaxis.title = { text: content.axes[chosenAxis()] };
  }
  return layout;
}

const configs = {}; // each made once: with another one, Plotly forgets the zoom

function config(name) {
  const svg = {
    name: "svg",
    title: "Download as SVG",
    icon: Plotly.Icons.disk,
    click: plot => Plotly.downloadImage(plot, { format: "svg", filename: name }),
  };
  return configs[name] ??= {
    displaylogo: false,
    responsive: true,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToAdd: [svg],
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
    toImageButtonOptions: { format: "png", scale: 2, filename: name },
  };
}

function draw(figure) {
  const traces = figure.figure.data.map(filledTrace);
  Plotly.react(byId(figure.id), traces, themedLayout(figure), config(figure.id));
}

/** A new section with an empty paragraph under its heading, at the end of `parent`. */
function addSection(parent, id, heading) {
  const section = element("section", "", { id });
  section.append(element("h2", heading), element("p"));
  parent.append(section);
  return section;
}

/** The choice of the cost axis. */
function axisControl() {
  const choice = element("select", "", { id: "axis" });
  for (const [value, text] of Object.entries(content.axes))
    choice.append(element("option", text, { value }));
  choice.addEventListener("change", () => draw(content.figures.find(figure => figure.control)));
  const label = element("label", "cost: ", { className: "control" });
  label.append(choice);
  return label;
}

function drawFigures() {
  const home = byId("figures") ?? byId("rest").appendChild(element("div", "", { id: "figures" }));
  const wanted = new Set(content.figures.map(figure => `of-${figure.id}`));
  for (const section of [...home.children])
    if (!wanted.has(section.id)) section.remove();
  for (const [place, figure] of content.figures.entries()) {
    let section = byId(`of-${figure.id}`);
    if (!section) {
      section = addSection(home, `of-${figure.id}`, "");
      if (figure.control) section.append(axisControl());
      section.append(element("div", "", { id: figure.id, className: "figure" }));
    }
    section.querySelector("h2").textContent = figure.heading;
    section.querySelector("p").textContent = figure.words;
    if (home.children[place] !== section) // a live page's new figures come in their own order
      home.insertBefore(section, home.children[place] ?? null);
    draw(figure);
  }
}

// ---- tables

/** A value as CSV has it. */
function quoted(value) {
  if (value === null || value === undefined) return "";
  return /[",\n\r]/.test(value) ? `"${String(value).replace(/"/g, '""')}"` : value;
}

function compareValues(a, b) {
  const numbers = typeof a === "number" && typeof b === "number";
  return numbers ? a - b : String(a).localeCompare(b);
}

/** A table of the content, which can be sorted, filtered, unfolded and downloaded. */
class Table {
  constructor(id, heading, words) {
    this.id = id;
    this.sortedColumn = null;
    this.ascending = false;
    this.mostRows = 100;
    this.unfolded = new Set(); // keys of the networks whose runs are shown
    const section = addSection(byId("rest"), `of-${id}`, heading);
    section.querySelector("p").textContent = words;
    this.filter = element("input", "", {
      type: "search", placeholder: "filter", ariaLabel: `filter ${heading}`,
    });
    this.filter.addEventListener("input", () => this.draw());
    const csv = element("button", "download CSV", { type: "button", className: "csv" });
    csv.addEventListener("click", () => this.download());
    this.count = element("span", "", { className: "count" });
    const bar = element("div", "", { className: "bar" });
    bar.append(this.filter, csv, this.count);
    this.table = element("table", "", { id });
    const wide = element("div", "", { className: "wide" });
    wide.append(this.table);
    this.more = element("button", "", { type: "button", className: "more" });
    this.more.addEventListener("click", () => { this.mostRows *= 10; this.draw(); });
    section.append(bar, wide, this.more);
  }

  get columns() { return content.tables[this.id].columns; } // [key, heading, what it says, kind]
  get values() { return content.tables[this.id].rows; }     // key → values
  get length() { return this.values[this.columns[0][0]].length; }

  /** The rows, as indices, that pass the filter, in the chosen order. */
  chosenRows() {
    let rows = [...Array(this.length).keys()];
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) rows = rows.filter(row => {
      const cells = this.columns.map(([key, , , kind]) => format(kind, this.values[key][row]));
      const text = cells.join("\t").toLowerCase();
      return words.every(word => text.includes(word));
    });
    if (this.sortedColumn !== null) this.sort(rows);
    return rows;
  }

  /** Sort rows in place; empty cells come last either way. */
  sort(rows) {
    const [key, , , kind] = this.columns[this.sortedColumn];
    const values = this.values[key];
    const cell = row => kind === "network" ? format(kind, values[row]) : values[row];
    rows.sort((i, j) => {
      const a = cell(i), b = cell(j);
      if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
      return this.ascending ? compareValues(a, b) : compareValues(b, a);
    });
  }

  draw() {
    const rows = this.chosenRows();
    const head = element("thead"), body = element("tbody");
    head.append(this.headRow());
    for (const row of rows.slice(0, this.mostRows)) body.append(...this.bodyRows(row));
    this.table.replaceChildren(head, body);
    const all = this.length;
    this.count.textContent = rows.length === all ? `${all} rows` : `${rows.length} of ${all} rows`;
    this.more.hidden = rows.length <= this.mostRows;
    this.more.textContent = `show ${Math.min(9 * this.mostRows, rows.length - this.mostRows)} more`;
  }

  headRow() {
    const head = element("tr");
    for (const [place, [, name, title]] of this.columns.entries()) {
      const cell = element("th"), button = element("button", name, { type: "button", title });
      const order = this.ascending ? "ascending" : "descending";
      cell.setAttribute("aria-sort", this.sortedColumn === place ? order : "none");
      button.addEventListener("click", () => {
        this.ascending = this.sortedColumn === place ? !this.ascending : false;
        this.sortedColumn = place;
        this.draw();
        this.table.tHead.rows[0].cells[place].firstChild.focus(); // the one clicked is gone
      });
      cell.append(button);
      head.append(cell);
    }
    return head;
  }

  /** A row's elements: itself and, of an unfolded network, its runs. */
  bodyRows(row) {
    const line = element("tr");
    for (const [key, , , kind] of this.columns) {
      const value = this.values[key][row];
      const className = kind !== "network" && typeof value === "number" ? "n" : "";
      line.append(element("td", format(kind, value), { className }));
    }
    if (this.id !== "networks") return [line];
    const key = this.values.network[row];
    line.addEventListener("click", () => {
      if (!this.unfolded.delete(key)) this.unfolded.add(key);
      this.draw();
    });
    return this.unfolded.has(key) ? [line, this.runsRow(row)] : [line];
  }

  /** The runs of a network, as the row under its own. */
  runsRow(network) {
    const runs = content.tables.runs.rows;
    const cell = element("td", "", { colSpan: this.columns.length });
    for (const [row, of] of runs.row.entries()) {
      if (of !== network) continue;
      let text = `seed ${runs.seed[row]}, epochs ${runs.epochs[row]}: ${runs.status[row]}`;
      if (runs.val_acc[row] !== null) text += `, val ${format("percent1", runs.val_acc[row])} %`;
      if (runs.test_acc[row] !== null) text += `, test ${format("percent1", runs.test_acc[row])} %`;
      if (runs.note[row]) text += ` (${runs.note[row]})`;
      cell.append(element("div", text));
    }
    const line = element("tr", "", { className: "runs" });
    line.append(cell);
    return line;
  }

  download() {
    const lines = [this.columns.map(([key, name]) => key === "row" ? name : key).join(",")];
    for (const row of this.chosenRows()) {
      const cells = this.columns.map(([key, , , kind]) => {
        const value = this.values[key][row];
        return quoted(kind === "network" ? format(kind, value) : value);
      });
      lines.push(cells.join(","));
    }
    const file = new Blob([lines.join("\n") + "\n"], { type: "text/csv" });
    const link = element("a", "", { href: URL.createObjectURL(file) });
    link.download = `${this.id}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000); // Safari reads it later
  }
}

// ---- the page

let tables = null;

function drawAll() {
  drawFigures();
  if (!content.tables) return; // a comparison, or a live page without its content yet
  tables ??= [
    new Table("networks", "Every network", "Click a heading to sort, a row for its runs."),
    new Table("runs", "Every run", "The same rows, in full precision, are in results.csv."),
  ];
  for (const table of tables) table.draw();
}

function redraw() {
  for (const figure of content.figures) draw(figure);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => { printing = true; redraw(); });
addEventListener("afterprint", () => { printing = false; redraw(); });

// ---- the dashboard's page asks for its content again and again

/** Show new content. `shown` has the words of before: equal ones stay, with what is selected. */
function update(shown) {
  document.title = document.querySelector("h1").textContent = content.title;
  for (const id of ["answer", "reproduce"]) {
    if (content[id] && shown[id] !== content[id]) byId(id).outerHTML = content[id];
    shown[id] = content[id];
  }
  drawAll();
}

async function refresh(live) {
  const began = performance.now();
  try {
    const headers = live.tag ? { "If-None-Match": live.tag } : {};
    const answer = await fetch("content", { headers });
    if (answer.status === 200) {
      content = await answer.json();
      live.tag = answer.headers.get("ETag");
      update(live.shown);
    }
    const good = [200, 304].includes(answer.status);
    const state = good ? content.state ?? "" : await answer.text();
    live.line.textContent = `live · ${state} · ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    live.line.textContent = "the dashboard does not answer; this is the last that it said";
  }
  // a large study takes seconds to read: asked for at most a tenth of the time
  setTimeout(refresh, Math.max(2000, 10 * (performance.now() - began)), live);
}

drawAll();
if ("live" in document.body.dataset) {
  const line = element("p", "live", { id: "live" });
  document.querySelector("h1").after(line);
  refresh({ line, tag: null, shown: {} });
}
