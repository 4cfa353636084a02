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
  name: value => value,
  accuracy: (value, row) => content.tables.networks.rows.accuracy[row],
  difference: (value, row) => content.tables.networks.rows.against[row],
  hidden: value => value,
};

// Those that stand to the right, as numbers do.
const NUMBERS = ["number", "si", "fixed2", "percent", "percent1", "ratio", "accuracy"];

function isEmpty(value) {
  return value === null || value === undefined || value === "";
}

/** A value as the page shows it; `row` is the row of the networks' table that it stands in. */
function format(kind, value, row) {
  return isEmpty(value) ? "" : FORMATS[kind](value, row);
}

// ---- figures

/** The cost that the reader has chosen as the horizontal axis. */
function chosenAxis() {
  return byId("axis")?.value ?? Object.keys(content.axes ?? { macs: "" })[0];
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
  const multipliers = [["alpha", "depth"], ["beta", "width"], ["gamma", "resolution"]].map(
    ([key, name]) => `${name} ×${format("number", networks[key][row])}`);
  lines.push(multipliers.join(", "));
  const macs = `${human(networks.macs[row])} FLOPs (multiply-adds, ${networks.ratio[row].toFixed(2)}x)`;
  lines.push(`${macs}, ${human(networks.params[row])} parameters`);
  if (networks.mean[row] !== null) {
    lines.push(`accuracy ${networks.accuracy[row]} %`);
    if (networks.difference[row] !== null) lines.push(`against the pick ${networks.against[row]}`);
    lines.push(escapeText(networks.own[row]));
  }
  return lines.join("<br>");
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
    // a point for each moment of a curve, and the gap behind it
    filled.text = meta.curves.flatMap(
      (row, k) => Array(meta.points[k] + 1).fill(escapeText(networks.label[row])));
  }
  return filled;
}

/** Whether the page is as narrow as a phone's. */
function isNarrow() {
  return document.documentElement.clientWidth < 600;
}

let printing = false; // paper is always light

/** The page's own colours and font, as style sheet and screen have them now. */
function theme() {
  if (printing) return { ink: "#1a1a1a", line: "#d9d9d9", page: "#ffffff" };
  const style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue(name).trim();
  return { ink: colour("--ink"), line: colour("--line"), page: colour("--page") };
}

/** The same of a trace or a layout with its colours (style.py) as a dark page has them. */
function recoloured(value) {
  if (typeof value === "string") return content.dark?.[value] ?? value;
  if (Array.isArray(value)) {
    // numbers by the thousand; a step of a colour scale is a number and a colour
    const isData = value.length > 2 && (typeof value[0] === "number" || value[0] === null);
    return isData ? value : value.map(recoloured);
  }
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, recoloured(part)]));
}

function isDark() {
  return !printing && matchMedia("(prefers-color-scheme: dark)").matches;
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
  if (isNarrow()) {
    layout.margin = { ...layout.margin, l: Math.min(45, layout.margin.l), r: layout.yaxis2 ? 50 : 10 };
    layout.font.size = 11;
    // names at the right end of lines have no room beside them: they stand over the end
    for (const note of layout.annotations ?? [])
      if (note.name === "line end") Object.assign(note, { xanchor: "right", xshift: 0, yshift: 10 });
  }
  for (const key of Object.keys(layout).filter(name => /^[xy]axis/.test(name)))
    layout[key] = { gridcolor: line, zerolinecolor: line, linecolor: line, ...layout[key] };
  if (figure.control) {
    layout.xaxis.uirevision = chosenAxis();
    const bandsAxis = Object.keys(content.axes)[0];
    if (chosenAxis() !== bandsAxis) { // without the budgets' bands and their names
      const spansIt = part => String(part.xref).includes("domain");
      layout.shapes = (layout.shapes ?? []).filter(spansIt);
      layout.annotations = (layout.annotations ?? []).filter(spansIt);
    }
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

/** A trace for a narrow page: its colour bar lies under the figure, where it takes no width. */
function narrowed(trace) {
  if (!isNarrow() || !trace.colorbar) return trace;
  const colorbar = {
    ...trace.colorbar, orientation: "h", y: -0.02, yanchor: "top", len: 0.9, thickness: 10,
    title: { ...trace.colorbar.title, side: "bottom" },
  };
  return { ...trace, colorbar };
}

function draw(figure) {
  const place = byId(figure.id);
  const fold = place.closest("details");
  if (fold && !fold.open && !printing) return; // it has no width yet
  let traces = figure.figure.data.map(filledTrace).map(narrowed);
  let layout = figure.figure.layout;
  if (isDark()) {
    traces = traces.map(recoloured);
    layout = recoloured(layout);
  }
  layout = themedLayout({ ...figure, figure: { layout } });
  if (isNarrow() && traces.some(trace => trace.colorbar)) {
    layout.legend = { ...layout.legend, y: -0.22 };
    layout.margin = { ...layout.margin, b: 150 };
    layout.height += 60;
  }
  Plotly.react(place, traces, layout, config(figure.id));
}

/** A new section, which a reader opens where it is `folded`, with an empty paragraph under its
 *  heading, at the end of `parent`. */
function addSection(parent, id, heading, folded = false) {
  const section = element(folded ? "details" : "section", "", { id });
  section.append(element(folded ? "summary" : "h2", heading), element("p"));
  parent.append(section);
  return section;
}

/** The choice of the cost axis. */
function axisControl() {
  const choice = element("select", "", { id: "axis" });
  for (const [value, text] of Object.entries(content.axes))
    choice.append(element("option", text, { value }));
  choice.addEventListener("change", () => draw(content.figures.find(figure => figure.control)));
  const label = element("label", "horizontal axis: ", { className: "control" });
  label.append(choice);
  return label;
}

/** The part of the page that holds the figures of a place: the first screen, below, folded. */
function homeOf(place) {
  const id = { first: "first", open: "figures", folded: "folded" }[place ?? "open"];
  if (!byId(id)) {
    const rest = byId("rest");
    rest.append(element("div", "", { id }));
    for (const name of ["first", "seen", "figures", "of-networks", "folded"]) // in this order
      if (byId(name)) rest.append(byId(name));
  }
  return byId(id);
}

function drawFigures() {
  const wanted = new Set(content.figures.map(figure => `of-${figure.id}`));
  for (const home of ["first", "figures", "folded"])
    for (const section of [...byId(home)?.children ?? []])
      if (!wanted.has(section.id) && section.id !== "of-runs") section.remove();
  const places = {};
  for (const figure of content.figures) {
    const home = homeOf(figure.place);
    let section = byId(`of-${figure.id}`);
    if (!section) {
      section = addSection(home, `of-${figure.id}`, "", figure.place === "folded");
      if (figure.control) section.append(axisControl());
      section.append(element("div", "", { id: figure.id, className: "figure" }));
      section.addEventListener("toggle", () => draw(
        content.figures.find(one => one.id === figure.id)));
    }
    section.querySelector("h2, summary").textContent = figure.heading;
    section.querySelector("p").textContent = figure.words;
    const place = places[home.id] = (places[home.id] ?? -1) + 1;
    if (home.children[place] !== section) // a live page's new figures come in their own order
      home.insertBefore(section, home.children[place] ?? null);
  }
  for (const figure of content.figures) draw(figure); // each has its width only now
}

// ---- tables

/** A value as CSV has it. */
function quoted(value) {
  if (value === null || value === undefined) return "";
  return /[",\n\r]/.test(value) ? `"${String(value).replace(/"/g, '""')}"` : value;
}

function compareValues(a, b) {
  const numbers = typeof a === "number" && typeof b === "number";
  return numbers ? a - b : String(a).localeCompare(b, undefined, { numeric: true });
}

/** A table of the content, which can be sorted, filtered, unfolded and downloaded. */
class Table {
  constructor(id, heading, words, home, folded) {
    this.id = id;
    this.wide = false; // whether every column is shown
    this.sortedColumn = null;
    this.ascending = false;
    this.mostRows = 100;
    this.unfolded = new Set(); // keys of the networks whose runs are shown
    const section = addSection(home, `of-${id}`, heading, folded);
    section.querySelector("p").textContent = words;
    this.filter = element("input", "", {
      type: "search", placeholder: "filter", ariaLabel: `filter ${heading}`,
    });
    this.filter.addEventListener("input", () => this.draw());
    const csv = element("button", "download CSV", { type: "button", className: "csv" });
    csv.addEventListener("click", () => this.download());
    this.count = element("span", "", { className: "count" });
    const bar = element("div", "", { className: "bar" });
    this.columnsButton = element("button", "more columns", { type: "button", className: "columns" });
    this.columnsButton.addEventListener("click", () => { this.wide = !this.wide; this.draw(); });
    bar.append(this.filter, csv, this.columnsButton, this.count);
    this.table = element("table", "", { id });
    const wide = element("div", "", { className: "wide" });
    wide.append(this.table);
    this.more = element("button", "", { type: "button", className: "more" });
    this.more.addEventListener("click", () => { this.mostRows *= 10; this.draw(); });
    this.legend = element("details", "", { className: "legend" });
    section.append(bar, wide, this.more, this.legend);
  }

  // [key, heading, what it says, kind, whether it is shown at once]
  get columns() { return content.tables[this.id].columns; }
  get shown() {
    return this.columns.filter(([, , , kind, first]) => kind !== "hidden" && (first || this.wide));
  }
  get values() { return content.tables[this.id].rows; }     // key → values
  get length() { return this.values[this.columns[0][0]].length; }

  /** The rows, as indices, that pass the filter, in the chosen order. */
  chosenRows() {
    let rows = [...Array(this.length).keys()];
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) rows = rows.filter(row => {
      const cells = this.columns.map(([key, , , kind]) => format(kind, this.values[key][row], row));
      const text = cells.join("\t").toLowerCase();
      return words.every(word => text.includes(word));
    });
    if (this.sortedColumn !== null) this.sort(rows);
    return rows;
  }

  /** Sort rows in place; empty cells come last either way. */
  sort(rows) {
    const [key, , , kind] = this.columns.find(([name]) => name === this.sortedColumn);
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
    if (this.id === "networks") { // the scale of all bars
      const ends = [...this.values.low, ...this.values.high].filter(value => value !== null);
      this.widest = Math.max(0.01, ...ends.map(Math.abs));
    }
    const head = element("thead"), body = element("tbody");
    head.append(this.headRow());
    for (const row of rows.slice(0, this.mostRows)) body.append(...this.bodyRows(row));
    this.table.replaceChildren(head, body);
    const all = this.length;
    this.count.textContent = rows.length === all ? `${all} rows` : `${rows.length} of ${all} rows`;
    this.more.hidden = rows.length <= this.mostRows;
    this.columnsButton.hidden = this.columns.every(([, , , kind, first]) => kind === "hidden" || first);
    this.columnsButton.textContent = this.wide ? "fewer columns" : "more columns";
    this.drawLegend();
    this.more.textContent = `show ${Math.min(9 * this.mostRows, rows.length - this.mostRows)} more`;
  }

  headRow() {
    const head = element("tr");
    for (const [key, name, title, kind] of this.shown) {
      const cell = element("th", "", { className: NUMBERS.includes(kind) ? "n" : "" });
      const button = element("button", name, { type: "button", title });
      const order = this.ascending ? "ascending" : "descending";
      cell.setAttribute("aria-sort", this.sortedColumn === key ? order : "none");
      button.addEventListener("click", () => {
        this.ascending = this.sortedColumn === key ? !this.ascending : false;
        this.sortedColumn = key;
        this.draw();
        const place = this.shown.findIndex(([one]) => one === key);
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
    for (const [key, , , kind] of this.shown) line.append(this.cell(key, kind, row));
    if (this.id !== "networks") return [line];
    const key = this.values.network[row];
    line.addEventListener("click", () => {
      if (!this.unfolded.delete(key)) this.unfolded.add(key);
      this.draw();
    });
    return this.unfolded.has(key) ? [line, this.runsRow(row)] : [line];
  }

  cell(key, kind, row) {
    const value = this.values[key][row];
    const text = format(kind, value, row);
    if (kind === "name") {
      const cell = element("td", text, { className: "name" });
      if (this.values.stands[row]) cell.append(element("small", this.values.stands[row]));
      return cell;
    }
    if (kind === "difference" && text) {
      const cell = element("td"), line = element("div", "", { className: "difference" });
      line.append(this.differenceBar(row), element("span", text));
      cell.append(line);
      return cell;
    }
    return element("td", text, { className: NUMBERS.includes(kind) ? "n" : "" });
  }

  /** A difference to the pick and its interval as a picture; all rows have one scale. */
  differenceBar(row) {
    const { difference, low, high } = this.values;
    const x = value => 80 + 76 * Math.max(-1, Math.min(1, value / this.widest));
    const namespace = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(namespace, "svg");
    svg.setAttribute("viewBox", "0 0 160 18");
    svg.setAttribute("aria-hidden", "true"); // the text beside it says the same
    const shapes = [
      ["rect", {
        class: "band", x: x(-content.margin), y: 0, height: 18,
        width: x(content.margin) - x(-content.margin),
      }],
      ["line", { class: "zero", x1: 80, x2: 80, y1: 0, y2: 18 }],
      ["line", { class: "whole", x1: x(low[row]), x2: x(high[row]), y1: 9, y2: 9 }],
      ["circle", { cx: x(difference[row]), cy: 9, r: 4 }],
    ];
    for (const [tag, attributes] of shapes) {
      const shape = document.createElementNS(namespace, tag);
      for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
      svg.append(shape);
    }
    return svg;
  }

  /** What the columns say, which a head alone has no room for. */
  drawLegend() {
    const list = element("dl");
    for (const [, name, title] of this.shown)
      if (title) list.append(element("dt", name), element("dd", title));
    this.legend.hidden = !list.children.length;
    this.legend.replaceChildren(element("summary", "What the columns say"), list);
  }

  /** The runs of a network, as the row under its own. */
  runsRow(network) {
    const runs = content.tables.runs.rows;
    const cell = element("td", "", { colSpan: this.shown.length });
    if (this.values.own[network]) cell.append(element("div", `accuracy: ${this.values.own[network]}`));
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
        return quoted(kind === "network" ? format(kind, value, row) : value);
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
    new Table(
      "networks", "Every network", "Click a heading to sort, a row for its runs.", byId("rest"), false),
    new Table(
      "runs", "Every run", "The same rows, in full precision, are in results.csv.",
      homeOf("folded"), true),
  ];
  homeOf("folded").append(byId("of-runs"));
  byId("rest").append(homeOf("folded"));
  for (const table of tables) table.draw();
}

function redraw() {
  for (const figure of content.figures) draw(figure);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
let wasOpen = []; // on paper nothing can be opened
addEventListener("beforeprint", () => {
  printing = true;
  wasOpen = [...document.querySelectorAll("details")].map(fold => [fold, fold.open]);
  for (const [fold] of wasOpen) fold.open = true;
  redraw();
});
addEventListener("afterprint", () => {
  printing = false;
  for (const [fold, open] of wasOpen) fold.open = open;
  redraw();
});

drawAll();
