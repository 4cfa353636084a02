"use strict";
// Everything on the page that is not words: figures and tables, from one JSON text. Nothing is set as HTML but what the
// server has escaped (answer, reproduce); every other text is set as text.

let content = JSON.parse(document.getElementById("content").textContent);
const byId = id => document.getElementById(id);
const make = (tag, text = "", props = {}) => Object.assign(document.createElement(tag), { textContent: text }, props);
const escaped = text => String(text).replace(/[&<>]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" }[c]));

// ---- numbers

const human = v => {
  const [scale, unit] = [[1e9, "G"], [1e6, "M"], [1e3, "K"]].find(([s]) => Math.abs(v) >= s) ?? [1, ""];
  return `${Number((v / scale).toPrecision(3))}${unit}`;
};
const FORMATS = {
  text: v => v, number: v => Number.isInteger(v) ? String(v) : String(Number(v.toPrecision(3))), si: human, fixed2: v => v.toFixed(2),
  percent: v => `${Math.round(100 * v)}%`, percent1: v => (100 * v).toFixed(1), ratio: v => `${v.toFixed(2)}x`,
  network: v => content.tables.networks.rows.label[v],
};
const shown = (kind, v) => v === null || v === undefined || v === "" ? "" : FORMATS[kind](v);

// ---- figures

const axis = () => byId("axis")?.value ?? "macs";

function hover(i) {
  const n = content.tables.networks.rows;
  const lines = [n.stands[i] && `<b>${escaped(n.stands[i])}</b>`, escaped(n.label[i])];
  if (n.share_depth[i] !== null)
    lines.push("shares: " + ["depth", "width", "resolution"].map(
      name => `${name} ${shown("percent", n[`share_${name}`][i])}`).join(" "));
  lines.push(["alpha", "beta", "gamma"].map(name => `${name} ${shown("number", n[name][i])}`).join(", "));
  lines.push(`${human(n.macs[i])} MACs (${n.ratio[i].toFixed(2)}x), ${human(n.params[i])} params`);
  if (n.mean[i] !== null) lines.push(`validation ${shown("percent1", n.mean[i])} ± ${shown("percent1", n.error[i])} %`
    + (n.best[i] === null ? "" : `, P(best) ${n.best[i].toFixed(2)}`) + ` (${n.count[i]} runs)`);
  return lines.filter(Boolean).join("<br>");
}

function runText(i) {
  const r = content.tables.runs.rows;
  return `${escaped(shown("network", r.row[i]))}, seed ${r.seed[i]}, ${escaped(r.status[i])}`;
}

function filled(trace) { // what the table of networks says is there once, and not in the figures again
  const meta = trace.meta, networks = content.tables?.networks.rows;
  if (!meta || !networks) return trace;
  const out = { ...trace };
  if (meta.rows) out.text = meta.rows.map(hover);
  if (meta.axis) out.x = meta.rows.map(i => networks[axis()][i]);
  if (meta.costs) out.x = meta.costs[axis()] ?? [];
  if (meta.front) {
    out.x = meta.front[axis()].map(i => networks[axis()][i]);
    out.y = meta.front[axis()].map(i => 100 * networks.mean[i]);
  }
  if (meta.curves) out.text = meta.curves.flatMap((run, k) => Array(meta.points[k] + 1).fill(runText(run)));
  return out;
}

let paper = false; // while printing: always light
function dressed(figure) {
  const style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name).trim();
  const ink = paper ? "#1a1a1a" : colour("--ink"), line = paper ? "#d9d9d9" : colour("--line");
  const page = paper ? "#ffffff" : colour("--page");
  const layout = structuredClone(figure.layout);
  Object.assign(layout, {
    uirevision: "keep", paper_bgcolor: page, plot_bgcolor: page,
    font: { family: "system-ui, sans-serif", size: 13, color: ink },
    hoverlabel: { bgcolor: page, bordercolor: line, font: { color: ink }, align: "left" },
  });
  const narrow = document.documentElement.clientWidth < 600;
  if (narrow) {
    layout.margin = { ...layout.margin, l: 45, r: layout.yaxis2 ? 50 : 10 };
    layout.font.size = 10;
  }
  for (const key of Object.keys(layout).filter(k => /^[xy]axis/.test(k)))
    layout[key] = { gridcolor: line, zerolinecolor: line, linecolor: line, ...layout[key] };
  for (const side of ["aaxis", "baxis", "caxis"])
    if (layout.ternary) layout.ternary[side] = { gridcolor: line, linecolor: ink, ...layout.ternary[side] };
  if (layout.ternary) layout.ternary.bgcolor = page;
  if (figure.control && axis() !== "macs") { // the budget is in FLOPs
    layout.shapes = layout.annotations = [];
    layout.xaxis.title = { text: content.axes[axis()] };
  }
  if (figure.control) layout.xaxis.uirevision = axis();
  return layout;
}

const configs = {}; // made once: another one would make Plotly forget the zoom
function config(name) {
  const svg = { name: "svg", title: "Download as SVG", icon: Plotly.Icons.disk,
    click: div => Plotly.downloadImage(div, { format: "svg", filename: name }) };
  return configs[name] ??= {
    displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToAdd: [svg],
    modeBarButtonsToRemove: ["select2d", "lasso2d"], toImageButtonOptions: { format: "png", scale: 2, filename: name },
  };
}

function draw(figure) {
  const layout = dressed({ ...figure.figure, control: figure.control });
  Plotly.react(byId(figure.id), figure.figure.data.map(filled), layout, config(figure.id));
}

function section(parent, id, heading) {
  const found = make("section", "", { id });
  found.append(make("h2", heading), make("p"));
  parent.append(found);
  return found;
}

function drawFigures() {
  const home = byId("figures") ?? byId("rest").appendChild(make("div", "", { id: "figures" }));
  const wanted = new Set(content.figures.map(f => `of-${f.id}`));
  for (const old of [...home.children]) if (!wanted.has(old.id)) old.remove();
  for (const [k, figure] of content.figures.entries()) {
    let place = byId(`of-${figure.id}`);
    if (!place) {
      place = section(home, `of-${figure.id}`, "");
      if (figure.control) {
        const choice = make("select", "", { id: "axis" });
        for (const [value, text] of Object.entries(content.axes)) choice.append(make("option", text, { value }));
        choice.addEventListener("change", () => draw(content.figures.find(f => f.control)));
        const label = make("label", "cost: ", { className: "control" });
        label.append(choice);
        place.append(label);
      }
      place.append(make("div", "", { id: figure.id, className: "figure" }));
    }
    place.querySelector("h2").textContent = figure.heading;
    place.querySelector("p").textContent = figure.words;
    if (home.children[k] !== place) home.insertBefore(place, home.children[k] ?? null); // in the order of the content
    draw(figure);
  }
}

// ---- tables

class Table {
  constructor(id, heading, words) {
    this.id = id;
    this.sort = null;
    this.up = false;
    this.most = 100;
    this.unfolded = new Set(); // keys of networks
    this.place = section(byId("rest"), `of-${id}`, heading);
    this.place.querySelector("p").textContent = words;
    this.filter = make("input", "", { type: "search", placeholder: "filter", ariaLabel: `filter ${heading}` });
    this.filter.addEventListener("input", () => this.draw());
    const csv = make("button", "download CSV", { type: "button", className: "csv" });
    csv.addEventListener("click", () => this.download());
    this.count = make("span", "", { className: "count" });
    const bar = make("div", "", { className: "bar" });
    bar.append(this.filter, csv, this.count);
    const wide = make("div", "", { className: "wide" });
    this.table = make("table", "", { id });
    wide.append(this.table);
    this.more = make("button", "", { type: "button", className: "more" });
    this.more.addEventListener("click", () => { this.most *= 10; this.draw(); });
    this.place.append(bar, wide, this.more);
  }

  rows() { // indices that pass the filter, in the chosen order
    const { columns, rows } = content.tables[this.id];
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const count = rows[columns[0][0]].length;
    let found = [...Array(count).keys()];
    if (words.length) found = found.filter(i => {
      const text = columns.map(([key, , , kind]) => shown(kind, rows[key][i])).join("\t").toLowerCase();
      return words.every(word => text.includes(word));
    });
    if (this.sort !== null) {
      const [key, , , kind] = columns[this.sort];
      const value = i => kind === "network" ? shown(kind, rows[key][i]) : rows[key][i];
      const empty = v => v === null || v === undefined || v === "";
      const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(b);
      found.sort((i, j) => {
        const a = value(i), b = value(j);
        if (empty(a) || empty(b)) return empty(a) - empty(b);
        return this.up ? compare(a, b) : compare(b, a);
      });
    }
    return found;
  }

  draw() {
    const { columns, rows } = content.tables[this.id];
    const head = make("tr");
    for (const [k, [, name, title]] of columns.entries()) {
      const cell = make("th"), button = make("button", name, { type: "button", title });
      cell.setAttribute("aria-sort", this.sort !== k ? "none" : this.up ? "ascending" : "descending");
      button.addEventListener("click", () => {
        this.up = this.sort === k ? !this.up : false;
        this.sort = k;
        this.draw();
        this.table.tHead.rows[0].cells[k].firstChild.focus();
      });
      cell.append(button);
      head.append(cell);
    }
    const found = this.rows(), body = make("tbody");
    for (const i of found.slice(0, this.most)) {
      const row = make("tr");
      for (const [key, , , kind] of columns)
        row.append(make("td", shown(kind, rows[key][i]), { className: kind !== "network" && typeof rows[key][i] === "number" ? "n" : "" }));
      body.append(row);
      if (this.id !== "networks") continue;
      const key = rows.network[i];
      row.addEventListener("click", () => {
        if (!this.unfolded.delete(key)) this.unfolded.add(key);
        this.draw();
      });
      if (this.unfolded.has(key)) row.after(this.runsOf(i));
    }
    const top = make("thead");
    top.append(head);
    this.table.replaceChildren(top, body);
    const all = rows[columns[0][0]].length;
    this.count.textContent = found.length === all ? `${all} rows` : `${found.length} of ${all} rows`;
    this.more.hidden = found.length <= this.most;
    this.more.textContent = `show ${Math.min(9 * this.most, found.length - this.most)} more`;
  }

  runsOf(i) { // each run of a network, under it
    const runs = content.tables.runs.rows, cell = make("td", "", { colSpan: content.tables.networks.columns.length });
    for (const [k, of] of runs.row.entries())
      if (of === i) cell.append(make("div", `seed ${runs.seed[k]}, epochs ${runs.epochs[k]}: ${runs.status[k]}`
        + (runs.val_acc[k] === null ? "" : `, val ${shown("percent1", runs.val_acc[k])} %`)
        + (runs.test_acc[k] === null ? "" : `, test ${shown("percent1", runs.test_acc[k])} %`)
        + (runs.note[k] ? ` (${runs.note[k]})` : "")));
    const under = make("tr", "", { className: "runs" });
    under.append(cell);
    return under;
  }

  download() {
    const { columns, rows } = content.tables[this.id];
    const quoted = v => v === null || v === undefined ? "" : /[",\n\r]/.test(v) ? `"${String(v).replace(/"/g, '""')}"` : v;
    const value = (key, kind, i) => quoted(kind === "network" ? shown(kind, rows[key][i]) : rows[key][i]);
    const lines = [columns.map(([key, name]) => key === "row" ? name : key).join(",")];
    for (const i of this.rows()) lines.push(columns.map(([key, , , kind]) => value(key, kind, i)).join(","));
    const link = make("a", "", { href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" })) });
    link.download = `${this.id}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000); // Safari reads it later
  }
}

// ---- the page

let tables = null;
function drawAll() {
  drawFigures();
  if (!content.tables) return;
  tables ??= [
    new Table("networks", "Every network", "Click a heading to sort, a row for its runs."),
    new Table("runs", "Every run", "The same rows, in full precision, are in results.csv."),
  ];
  for (const table of tables) table.draw();
}

function redraw() { for (const figure of content.figures) draw(figure); }
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => { paper = true; redraw(); });
addEventListener("afterprint", () => { paper = false; redraw(); });

// ---- live: the dashboard's page asks for its content again and again

async function refresh(state) {
  const began = performance.now();
  try {
    const answer = await fetch("content", { headers: state.tag ? { "If-None-Match": state.tag } : {} });
    if (answer.status === 200) {
      content = await answer.json();
      state.tag = answer.headers.get("ETag");
      document.title = document.querySelector("h1").textContent = content.title;
      for (const id of ["answer", "reproduce"]) {
        if (content[id] && state[id] !== content[id]) byId(id).outerHTML = content[id];
        state[id] = content[id];
      }
      drawAll();
    }
    const said = [200, 304].includes(answer.status) ? content.state ?? "" : await answer.text();
    state.words.textContent = `live · ${said} · ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    state.words.textContent = "the dashboard does not answer; this is the last that it said";
  }
  setTimeout(refresh, Math.max(2000, 10 * (performance.now() - began)), state); // a large study is read for seconds
}

drawAll();
if ("live" in document.body.dataset) {
  const words = make("p", "live", { id: "live" });
  document.querySelector("h1").after(words);
  refresh({ words, tag: null });
}
