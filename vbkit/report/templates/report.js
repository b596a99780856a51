"use strict";
// The page's script. Values of videos reach the document as text nodes and attributes only: there is
// no innerHTML here, and no URL is made of a value but fragments of this page and data: pictures.
(() => {
const $ = (id) => document.getElementById(id);
const meta = JSON.parse($("meta").textContent);
const list = $("videos");
const rowsOfList = [...list.tBodies[0].rows];
const small = matchMedia("(max-width: 760px)");

// --- making elements ---------------------------------------------------------------------------

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined
    && child !== false).map((child) => child instanceof Node ? child : String(child)));
  return element;
}

function clock(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.floor(seconds + 1e-6);
  const pad = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
}
const interval = (row) => `${clock(row.start_s)}–${clock(row.end_s)}`;
const timed = (row) => typeof row.start_s === "number" && typeof row.end_s === "number";
const minus = (text) => text.replace("-", "−");
const score = (value) => typeof value === "number" ? minus(value.toFixed(2)) : "";
const number = (value) => value === null || value === undefined ? ""
  : minus(Number.isInteger(value) ? value.toLocaleString("en", {useGrouping: Math.abs(value) > 9999})
    : value.toFixed(3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""));
const plural = (count, one, many = one + "s") =>
  `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const known = (value, ...values) => values.includes(value) ? value : "";
const markOf = (value) => h("span", {class: "mark " + known(value, "ok", "partial", "failed",
  "allow", "review", "block", "positive", "neutral", "negative")}, value);

// --- what is embedded --------------------------------------------------------------------------

function video(index) {
  const data = JSON.parse($("data-" + index).textContent);
  const tables = {};
  for (const [name, rows] of Object.entries(data.rows)) {
    const names = meta.tables[name].columns.map((column) => column.name);
    tables[name] = rows.map((row) => Object.fromEntries(names.map((key, i) => [key, row[i]])));
  }
  return {index, id: meta.videos[index], about: data.about, tables, leftOut: data.leftOut,
    rows: (name) => tables[name] ?? []};
}
const pictures = (index) => JSON.parse($("pictures-" + index).textContent);
const source = (picture) => "data:image/jpeg;base64," + picture.jpeg;
function nearest(shown, seconds) {
  let best = null;
  for (const picture of shown)
    if (best === null || Math.abs(picture.t - seconds) < Math.abs(best.t - seconds)) best = picture;
  return best;
}

// --- charts, by Vega-Lite ----------------------------------------------------------------------

const font = getComputedStyle(document.documentElement).fontFamily;
const config = {
  font, background: null, view: {stroke: null}, padding: 0,
  axis: {labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--line)",
    domainColor: "var(--line)", tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12,
    titleFontWeight: "normal", labelPadding: 6},
  bar: {color: "var(--bar)"},
  text: {color: "var(--ink)", fontSize: 12},
  rule: {color: "var(--line)"},
};
const drawn = [];  // the charts of the video that is shown

function tip(handler, event, item, value) {
  const box = $("tip");
  box.hidden = value === null || value === undefined || value === "";
  if (box.hidden) return;
  box.textContent = typeof value === "object" ? Object.values(value).join("\n") : value;
  const {innerWidth, innerHeight} = window, size = box.getBoundingClientRect();
  box.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - size.width - 8)) + "px";
  box.style.top = (event.clientY + 16 + size.height > innerHeight
    ? event.clientY - size.height - 10 : event.clientY + 16) + "px";
}

async function draw(element, spec) {
  // ast: expressions are interpreted, so that the content security policy need not allow eval.
  const chart = await vegaEmbed(element, {width: "container", ...spec}, {mode: "vega-lite",
    renderer: "svg", actions: false, ast: true, defaultStyle: false, tooltip: tip, config});
  if (!element.isConnected) chart.finalize();
  else if (element.closest("#video")) drawn.push(chart);
}

function bars(rows, {label, value, format = "", sort = null, color, description, unit = ""}) {
  const reach = Math.max(...rows.map((row) => row[value])) * 1.4 || 1;
  const y = {field: label, type: "nominal", sort, axis: {title: null, domain: false, ticks: false,
    labelLimit: 140, labelColor: "var(--ink)"}};
  const x = {field: value, type: "quantitative", axis: null, scale: {domain: [0, reach]}};
  return {description, height: 24 * rows.length, data: {values: rows}, encoding: {y, x},
    layer: [
      {mark: {type: "bar", height: 12, cornerRadiusEnd: 2}, encoding: {...(color ? {color} : {}),
        description: {field: "tip"}, tooltip: {field: "tip"}}},
      {mark: {type: "text", align: "left", dx: 6, aria: false, color: "var(--muted)"},
        encoding: {text: {field: "shown"}}},
    ],
    transform: [
      {calculate: `format(datum['${value}'], '${format || ",d"}') + '${unit}'`, as: "shown"},
      {calculate: `datum['${label}'] + ': ' + datum.shown`, as: "tip"},
    ]};
}

function overviewCharts() {
  const place = $("charts"), charts = meta.charts;
  const add = (caption, spec) => {
    const element = h("div", {class: "chart"});
    place.append(h("figure", null, h("figcaption", null, caption), element));
    return draw(element, {...spec, description: caption});
  };
  if (charts.stages) add("What took the time in the last run", bars(charts.stages,
    {label: "name", value: "seconds", format: ".3~r", unit: " s"}));
  if (charts.flagged) {
    const totals = {};
    for (const row of charts.flagged) totals[row.category] = (totals[row.category] ?? 0) + row.count;
    const order = Object.keys(totals).sort((a, b) => totals[b] - totals[a]);
    add("Flagged stretches by category", {
      height: 24 * order.length,
      data: {values: charts.flagged.map((row) => ({...row,
        tip: `${row.category}: ${plural(row.count, "stretch", "stretches")}, ${row.decision}`}))},
      mark: {type: "bar", height: 12},
      encoding: {
        y: {field: "category", type: "nominal", sort: order, axis: {title: null, domain: false,
          ticks: false, labelLimit: 140, labelColor: "var(--ink)"}},
        x: {field: "count", type: "quantitative", axis: {title: null, tickMinStep: 1, grid: true,
          domain: false, ticks: false, tickCount: 4, format: ",d"}},
        color: {field: "decision", type: "nominal", scale: {domain: ["block", "review"],
          range: ["var(--bad)", "var(--warn)"]}, legend: {title: null, orient: "top",
          labelColor: "var(--muted)", labelFontSize: 12, symbolType: "square"}},
        order: {field: "decision"}, tooltip: {field: "tip"}, description: {field: "tip"},
      }});
  }
  if (charts.sentiments) add("Sentiment of the videos", bars(charts.sentiments,
    {label: "label", value: "count", color: {field: "label", type: "nominal", legend: null,
      scale: {domain: ["positive", "neutral", "negative"],
        range: ["var(--positive)", "var(--neutral)", "var(--negative)"]}}}));
  if (charts.labels) add("Likeliest labels", bars(charts.labels, {label: "label", value: "count"}));
}

// --- sorting -----------------------------------------------------------------------------------

function sortable(table, rows, body, changed = () => {}) {
  const heads = [...table.tHead.rows[0].cells];
  const original = new Map(rows.map((row, i) => [row, i]));
  const numeric = (column) => rows.every((row) => {
    const value = row.cells[column].dataset.v ?? row.cells[column].textContent;
    return value === "" || Number.isFinite(Number(value));
  });
  const by = (column, direction) => {
    const asNumber = numeric(column);
    const keys = new Map(rows.map((row) => {
      const value = row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
      return [row, value === "" ? null : asNumber ? Number(value) : value];
    }));
    const collator = new Intl.Collator("en", {numeric: true, sensitivity: "base"});
    const order = [...rows].sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (x === null || y === null) return (x === null) - (y === null)
        || original.get(a) - original.get(b);  // NULL is last in both directions
      const sign = asNumber ? x - y : collator.compare(x, y);
      return direction * sign || original.get(a) - original.get(b);
    });
    heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    body.append(...order);
  };
  heads.forEach((head, column) => {
    const button = head.querySelector(".sort");
    if (!button) return;
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      by(column, direction);
      changed(column, direction);
    });
  });
  return {by, reset: () => {
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    body.append(...rows);
  }};
}

// --- the list of videos: filters and search ----------------------------------------------------

const filters = [...document.querySelectorAll("[data-filter]")];
const state = {};  // what the address says of the list: q, filters, sort
let index = null;  // texts of each video, made when somebody searches

function textsOf(i) {
  const shown = video(i), texts = [];
  const add = (text, row, what) => {
    if (typeof text === "string" && text)
      texts.push({text, lower: text.toLowerCase(), t: timed(row) ? row.start_s : null, what});
  };
  add(shown.id, {}, "");
  for (const [name, rows] of Object.entries(shown.tables)) {
    const columns = meta.tables[name].columns.filter((column) => column.kind === "text"
      && !["decision", "modality", "stage", "error_type"].includes(column.name));
    for (const row of rows) for (const column of columns) {
      if (name === "summarisation_segments" && row.segment !== null) continue;  // said already
      if (name === "sentiment" && column.name !== "label") continue;
      add(row[column.name], row, name);
    }
  }
  return texts;
}

async function ensureIndex() {
  if (index) return;
  const made = [];
  let began = performance.now();
  for (let i = 0; i < meta.videos.length; i++) {
    made.push(textsOf(i));
    if (performance.now() - began > 40) {
      await new Promise((resolve) => setTimeout(resolve));
      began = performance.now();
    }
  }
  index = made;
}

function highlighted(text, words) {
  const lower = text.toLowerCase();
  const at = Math.max(0, Math.min(...words.map((word) => lower.indexOf(word))
    .filter((found) => found >= 0)));
  const from = at > 60 ? at - 50 : 0, to = Math.min(text.length, from + 140);
  const parts = [from ? "…" : ""];
  let position = from;
  while (position < to) {
    let next = to, length = 0;
    for (const word of words) {
      const found = lower.indexOf(word, position);
      if (found >= 0 && found < next) [next, length] = [found, word.length];
    }
    parts.push(text.slice(position, next));
    if (length) parts.push(h("mark", null, text.slice(next, next + length)));
    position = next + length;
  }
  return [...parts, to < text.length ? "…" : ""];
}

let asked = 0;
async function filter() {
  const turn = ++asked;
  const words = (state.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length) await ensureIndex();
  if (turn !== asked) return;  // somebody typed on meanwhile
  let count = 0;
  for (const row of rowsOfList) {
    const i = Number(row.dataset.i);
    let shown = filters.every(({dataset, value}) => !value || (dataset.filter === "tables"
      ? row.dataset.tables.split(" ").includes(value) : row.dataset[dataset.filter] === value));
    row.querySelector(".hits")?.remove();
    if (shown && words.length) {
      shown = words.every((word) => index[i].some((entry) => entry.lower.includes(word)));
      if (shown) addHits(row, i, words);
    }
    row.hidden = !shown;
    count += shown;
  }
  const all = rowsOfList.length;
  $("count").textContent = count === all ? plural(all, "video")
    : `${count.toLocaleString("en")} of ${plural(all, "video")}`;
  $("nothing").hidden = count > 0;
  list.hidden = count === 0;
  $("clear").hidden = !words.length && !state.sort && filters.every(({value}) => !value);
}

function addHits(row, i, words) {
  const found = (entry) => words.filter((word) => entry.lower.includes(word)).length;
  const seen = new Set([meta.videos[i]]);
  const best = index[i].filter((entry) => entry.what && entry.what !== "summarisation"
    && found(entry)).sort((a, b) => found(b) - found(a))
    .filter((entry) => !seen.has(entry.text) && seen.add(entry.text)).slice(0, 3);
  if (!best.length) return;
  row.cells[1].append(h("ul", {class: "hits"}, best.map((entry) => h("li", null,
    entry.t === null ? null : h("a", {href: address(i, entry.t)}, clock(entry.t)),
    h("span", null, highlighted(entry.text, words))))));
}

const listSort = sortable(list, rowsOfList, list.tBodies[0], (column, direction) => {
  state.sort = (direction < 0 ? "-" : "") + column;
  keep();
  filter();
});

function keep() {
  const parts = Object.entries(state).filter(([, value]) => value)
    .map(([key, value]) => `${key}=${encodeURIComponent(value)}`);
  history.replaceState(null, "", "#" + parts.join("&"));
}

function restore(parameters) {
  state.q = parameters.get("q") ?? "";
  $("search").value = state.q;
  for (const select of filters) {
    const value = parameters.get(select.dataset.filter) ?? "";
    select.value = [...select.options].some((option) => option.value === value) ? value : "";
    state[select.dataset.filter] = select.value;
  }
  const sort = parameters.get("sort") ?? "";
  const column = Math.abs(Number(sort));
  if (/^-?[1-9][0-9]?$/.test(sort) && column < list.tHead.rows[0].cells.length) {
    state.sort = sort;
    listSort.by(column, sort.startsWith("-") ? -1 : 1);
  } else if (state.sort) {
    state.sort = "";
    listSort.reset();
  }
  return filter();
}

$("search").addEventListener("focus", ensureIndex, {once: true});
let typed = 0;
$("search").addEventListener("input", (event) => {
  state.q = event.target.value;
  clearTimeout(typed);
  typed = setTimeout(() => { keep(); filter(); }, 120);
});
for (const select of filters) select.addEventListener("change", () => {
  state[select.dataset.filter] = select.value;
  keep();
  filter();
});
$("tools").addEventListener("submit", (event) => event.preventDefault());
$("tools").addEventListener("reset", () => setTimeout(() => {
  for (const key of Object.keys(state)) state[key] = "";
  listSort.reset();
  keep();
  filter();
  $("search").focus();
}));

// --- a video -----------------------------------------------------------------------------------

const address = (i, t) => `#video=${encodeURIComponent(meta.videos[i])}`
  + (t === undefined || t === null ? "" : `&t=${Math.round(t * 100) / 100}`);
let current = null;  // the video that is shown: {shown, images, duration, go}

const moment = (seconds, text) => seconds === null || seconds === undefined ? null
  : h("button", {type: "button", class: "time", "aria-label": `Go to ${clock(seconds)}`,
    onclick: () => { current.go(seconds); $("line")?.scrollIntoView({block: "nearest"}); }},
  text ?? clock(seconds));

function section(title, ...content) {
  const id = "s-" + title.toLowerCase().replace(/[^a-z]+/g, "-");
  const inside = content.flat(3).filter(Boolean);
  return inside.length ? h("section", {"aria-labelledby": id}, h("h2", {id}, title), ...inside)
    : null;
}

function lanes(shown) {
  const rows = [];
  const add = (lane, color, row, label, tip) => timed(row) && rows.push({lane, color,
    start: row.start_s, end: row.end_s, label: label ?? "",
    tip: `${tip ?? label ?? lane}\n${interval(row)}`});
  shown.rows("chapters").forEach((row, i) => add("Chapters", `chapter-${1 + i % 2}`, row,
    row.title));
  for (const row of shown.rows("moderation")) add("Moderation",
    row.decision === "block" ? "bad" : "warn", row, row.category,
    `${row.category}, ${row.decision}, score ${score(row.score)}`);
  for (const row of shown.rows("summarisation_segments")) if (row.selected)
    add("Summary", "selected", row, "", row.text ?? "in the summary");
  for (const row of shown.rows("qa")) if (row.rank === 1 && !row.no_answer)
    add("Answers", "answer", row, "", `${row.question}\n${row.answer}`);
  let before = null;
  for (const row of shown.rows("classification_clips")) if (row.rank === 1 && timed(row)) {
    if (before && before.label === row.label && row.start_s <= before.end + 0.01) {
      before.end = row.end_s;
      before.tip = `${row.label}\n${clock(before.start)}–${clock(before.end)}`;
    } else {
      add("Labels", "chapter-1", row, row.label);
      before = rows.at(-1);
    }
  }
  for (const [name, table] of Object.entries(meta.tables)) if (!table.known) {
    const words = table.columns.find((column) => column.kind === "text");
    const size = table.columns.find((column) => column.kind === "number"
      && !column.name.endsWith("_s"));
    for (const row of shown.rows(name)) add(name, "other", row,
      words ? row[words.name] ?? "" : "", [words && row[words.name],
        size && row[size.name] !== null && `${size.name} ${number(row[size.name])}`]
        .filter(Boolean).join(", ") || name);
  }
  return rows;
}

const STEPS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];

function timeAxis(duration, labels) {
  const most = small.matches ? 4 : 9;
  const step = STEPS.find((each) => duration / each <= most) ?? duration / most;
  // A label that is almost at the end would reach beyond it, and make this plot narrower than others.
  const values = Array.from({length: Math.floor(duration / step + 1e-9) + 1}, (_, i) => i * step)
    .filter((at) => duration - at > 0.04 * duration || duration - at < 1e-6);
  return {values, title: null, grid: true, gridOpacity: 0.6, domain: false, tickSize: 4, labels,
    ticks: labels, labelFlush: true,
    labelExpr: duration >= 3600
      ? "floor(datum.value/3600) + ':' + pad(floor(datum.value/60)%60,2,'0','left') + ':' + "
        + "pad(floor(datum.value%60),2,'0','left')"
      : "floor(datum.value/60) + ':' + pad(floor(datum.value%60),2,'0','left')"
        + (step < 1 ? " + '.' + round(10*(datum.value%1))" : "")};
}

// How far the time line's plots are from the left and the right (px), as the style sheet says.
function margins() {
  const style = getComputedStyle(document.documentElement);
  return {axis: parseInt(style.getPropertyValue("--axis")),
    edge: parseInt(style.getPropertyValue("--edge"))};
}

function timeSpec(duration) {
  const {axis, edge} = margins();
  return {
    x: (field, labels) => ({field, type: "quantitative",
      scale: {domain: [0, duration], nice: false, zero: false, clamp: true},
      axis: timeAxis(duration, labels)}),
    y: {title: null, minExtent: axis, maxExtent: axis, labelLimit: axis - 10, domain: false,
      ticks: false, labelColor: "var(--ink)"},
    frame: {autosize: {type: "fit-x", contains: "padding"},
      padding: {left: 0, right: edge, top: 2, bottom: 0}},
  };
}

const LANE_ORDER = ["Chapters", "Moderation", "Summary", "Answers", "Labels"];
const COLORS = ["chapter-1", "chapter-2", "bad", "warn", "selected", "answer", "other"];

function lanesSpec(rows, duration, labels) {
  const {x, y, frame} = timeSpec(duration);
  const names = [...new Set(rows.map((row) => row.lane))];
  const place = (name) => (LANE_ORDER.indexOf(name) + 1) || 99;
  names.sort((a, b) => place(a) - place(b));
  const least = duration / 400;  // a stretch of no length can still be seen
  const values = rows.map((row) => ({...row, end: Math.max(row.end, row.start + least)}));
  return {...frame, description: `Time line: ${names.join(", ")}`, height: 26 * names.length,
    data: {values},
    encoding: {
      y: {field: "lane", type: "nominal", sort: names, axis: y},
      x: x("start", labels),
    },
    layer: [
      {mark: {type: "bar", height: 18, cornerRadius: 2}, encoding: {x2: {field: "end"},
        color: {field: "color", type: "nominal", legend: null, scale: {domain: COLORS,
          range: COLORS.map((name) => `var(--${name})`)}},
        tooltip: {field: "tip"}, description: {field: "tip"}}},
      {transform: [{filter: "datum.label && indexof(datum.color, 'chapter') == 0"}],
        mark: {type: "text", align: "left", dx: 5, aria: false, fontSize: 11,
          limit: {expr: "max(1, scale('x', datum.end) - scale('x', datum.start) - 8)"}},
        encoding: {text: {field: "label"}}},
    ]};
}

function sentimentSpec(rows, duration) {
  const {x, y, frame} = timeSpec(duration);
  const values = rows.map((row) => ({t: (row.start_s + row.end_s) / 2, score: row.score,
    label: row.label, tip: `${row.label}, score ${score(row.score)}\n${interval(row)}`}));
  const scale = {type: "quantitative", scale: {domain: [-1, 1]}};
  return {...frame, description: "Sentiment over time, from −1, negative, to 1, positive",
    height: 84, data: {values},
    encoding: {
      x: x("t", true),
      y: {field: "score", ...scale, axis: {...y, values: [-1, 0, 1], grid: true,
        labelExpr: "datum.value > 0 ? 'positive' : datum.value < 0 ? 'negative' : 'neutral'"}},
    },
    layer: [
      {mark: {type: "line", color: "var(--muted)", strokeWidth: 1.5, interpolate: "monotone",
        aria: false}},
      {mark: {type: "point", filled: true, size: values.length > 60 ? 10 : 36,
        opacity: 1}, encoding: {
        color: {field: "label", type: "nominal", legend: null, scale: {
          domain: ["positive", "neutral", "negative"],
          range: ["var(--positive)", "var(--neutral)", "var(--negative)"]}},
        tooltip: {field: "tip"}, description: {field: "tip"}}},
    ]};
}

function lengthOf(shown) {
  let duration = shown.about.duration_s ?? 0;
  if (!duration) for (const rows of Object.values(shown.tables)) for (const row of rows)
    if (typeof row.end_s === "number") duration = Math.max(duration, row.end_s);
  return duration;
}

function strip(images) {
  const most = small.matches ? 6 : 14;
  const step = Math.max(1, images.length / most);
  const chosen = [];
  for (let i = 0; i < Math.min(images.length, most); i++)
    chosen.push(images[Math.min(images.length - 1, Math.floor((i + 0.5) * step))]);
  return h("div", {class: "strip", role: "group", "aria-label": "Keyframes"},
    [...new Set(chosen)].map((picture) => h("button", {type: "button",
      "aria-label": `Keyframe at ${clock(picture.t)}`,
      onclick: (event) => { event.stopPropagation(); current.go(picture.t); }},
    h("img", {src: source(picture), alt: "", decoding: "async"}))));
}

function timeline(shown, images, duration) {
  if (!duration) return null;
  const rows = lanes(shown);
  const sentiment = shown.rows("sentiment").filter((row) => timed(row) && row.score !== null);
  const line = h("div", {class: "line", id: "line", onclick: (event) => {
    const {axis, edge} = margins();
    const box = line.getBoundingClientRect();
    const at = (event.clientX - box.left - axis) / (box.width - axis - edge);
    if (at >= -0.01 && at <= 1.01) current.go(at * duration);
  }}, images.length ? strip(images) : null);
  const after = [];
  if (rows.length || !sentiment.length) {
    const chart = h("div", {class: "chart"});
    line.append(chart);
    if (rows.length) after.push(() => draw(chart, lanesSpec(rows, duration, !sentiment.length)));
    else line.classList.add("bare");
  }
  if (sentiment.length) {
    const chart = h("div", {class: "chart"});
    line.append(chart);
    after.push(() => draw(chart, sentimentSpec(sentiment, duration)));
  }
  line.append(h("div", {class: "cursor"}));
  const clips = shown.rows("clips");
  const slide = h("input", {type: "range", class: "slide", id: "slide", min: 0,
    max: duration, step: clips.length > 1 ? Math.max(0.1, duration / clips.length / 2) : "any",
    "aria-label": "Moment", oninput: (event) => current.go(Number(event.target.value), false)});
  const now = h("div", {class: "now", id: "now", "aria-live": "polite"});
  return {node: h("section", {"aria-label": "Time line"}, line, slide, now), after};
}

function showMoment(shown, images, duration, seconds) {
  const at = (name) => shown.rows(name).filter((row) => timed(row) && row.start_s <= seconds
    && (seconds < row.end_s || (row.end_s >= duration && seconds >= row.start_s)));
  const picture = nearest(images, seconds);
  const caption = at("clips").find((row) => row.caption)?.caption;
  const said = at("segments").map((row) => row.text).join(" ");
  const flags = at("moderation");
  const mood = at("sentiment")[0];
  const label = at("classification_clips").find((row) => row.rank === 1);
  const pair = (name, value) => value ? [h("dt", null, name), h("dd", null, value)] : [];
  $("now").classList.toggle("bare", !picture);
  $("now").replaceChildren(...(picture ? [h("img", {src: source(picture),
    alt: caption ?? `Picture at ${clock(picture.t)}`})] : []),
  h("dl", null,
    pair("at", `${clock(seconds)} of ${clock(duration)}`),
    pair("chapter", at("chapters")[0]?.title),
    pair("said", said), pair("caption", caption),
    pair("flagged", flags.length && flags.map((row, i) => [i ? ", " : "", markOf(row.decision),
      " ", row.category, " ", h("span", {class: "more"}, score(row.score))])),
    pair("sentiment", mood?.label && markOf(mood.label)),
    pair("label", label?.label)));
}

function spoken(title, rows, {text, side, at = "start_s"}) {
  const items = rows.map((row) => h("li", {"data-start": row.start_s, "data-end": row.end_s},
    h("span", null, moment(row[at])),
    h("span", {class: row.chosen ? "chosen" : null}, text(row)),
    h("span", {class: "side"}, side?.(row))));
  if (!items.length) return null;
  const ol = h("ol", {class: "spoken"}, items);
  return section(title, items.length > 24
    ? h("div", {class: "tall", tabindex: 0, role: "region", "aria-label": title}, ol) : ol);
}

// Clips after one another that have the same caption, as one.
function captionsOf(shown) {
  const merged = [];
  for (const row of shown.rows("clips")) {
    if (!row.caption) continue;
    const before = merged.at(-1);
    if (before?.caption === row.caption && row.start_s <= before.end_s + 0.01)
      before.end_s = row.end_s;
    else merged.push({...row});
  }
  return merged;
}

function transcript(shown) {
  const bySegment = (name) => new Map(shown.rows(name).filter((row) => typeof row.segment
    === "number").map((row) => [row.segment, row]));
  const moods = bySegment("sentiment"), selected = bySegment("summarisation_segments");
  const flags = shown.rows("moderation").filter((row) => row.modality === "text");
  const rows = shown.rows("segments").map((row) => ({...row,
    chosen: selected.get(row.segment)?.selected, mood: moods.get(row.segment)?.label,
    flagged: timed(row) ? flags.find((flag) => timed(flag) && flag.start_s < row.end_s
      && row.start_s < flag.end_s) : null}));
  const some = rows.some((row) => row.chosen);
  return [spoken("Transcript", rows, {text: (row) => row.text, side: (row) => [
    row.flagged && [markOf(row.flagged.decision), " ", row.flagged.category, " "],
    row.mood && row.mood !== "neutral" && markOf(row.mood),
    row.chosen && h("span", {class: "sr"}, "in the summary")]}),
  some && h("p", {class: "facts"}, "What is in the summary is set in bold.")];
}

function answers(shown) {
  const questions = new Map();
  for (const row of shown.rows("qa")) questions.set(row.question,
    [...questions.get(row.question) ?? [], row]);
  const one = (row) => [timed(row) && [moment(row.start_s, interval(row)), " "],
    row.answer ?? "nothing to answer from", " ",
    h("span", {class: "more"}, score(row.score))];
  return section("Answers", [...questions].map(([question, rows]) => {
    rows.sort((a, b) => a.rank - b.rank);
    const [best, ...others] = rows;
    const nearby = best.no_answer ? rows.filter((row) => row.answer !== null) : others;
    return h("div", {class: "answer"}, h("p", {class: "asked"}, question),
      best.no_answer ? h("p", {class: "more"}, "Probably nothing in this video answers that.")
        : h("p", null, one(best)),
      nearby.length ? h("details", null, h("summary", null, best.no_answer ? "The nearest"
        : plural(nearby.length, "other answer")),
      h("ul", null, nearby.map((row) => h("li", null, one(row))))) : null);
  }));
}

function moderation(shown, images) {
  const rows = [...shown.rows("moderation")].sort((a, b) => (b.score ?? 0) - (a.score ?? 0));
  const whole = shown.rows("moderation_videos")[0];
  if (!rows.length && !whole) return null;
  return section("Moderation",
    whole && h("p", {class: "facts"}, h("span", null, "verdict: ", whole.decision ? markOf(whole.decision)
      : "nothing could be judged"),
    whole.decision === "allow" && whole.nearest_category
      ? h("span", null, `nearest category ${whole.nearest_category}, ${score(whole.score)}`) : null,
    whole.note ? h("span", null, whole.note) : null),
    rows.length && h("ul", {class: "flags"}, rows.map((row) => {
      const picture = timed(row) && row.modality !== "text"
        ? nearest(images, (row.start_s + row.end_s) / 2) : null;
      return h("li", {class: picture ? null : "bare"},
        picture && h("img", {src: source(picture), alt: `Picture at ${clock(picture.t)}`}),
        h("div", null,
          h("p", null, markOf(row.decision), " ", h("b", null, row.category),
            row.parent_category && row.parent_category !== row.category
              ? ` (${row.parent_category})` : "",
            " ", h("span", {class: "more"}, `score ${score(row.score)}`)),
          h("p", null, timed(row) && [moment(row.start_s, interval(row)), " "],
            h("span", {class: "more"}, row.modality)),
          row.evidence && h("p", null, row.evidence)));
    })));
}

// Rows of the core's table explanations: what each piece of evidence brings to the number of a row.
function explanations(shown) {
  const groups = new Map();
  for (const row of shown.rows("explanations")) {
    const key = JSON.stringify([row.of_table, row.of_row, row.target]);
    groups.set(key, [...groups.get(key) ?? [], row]);
  }
  const all = [...groups.values()].map((rows) => {
    const {of_table, of_row, target, method} = rows[0];
    const of = shown.tables[of_table]?.[of_row] ?? {};
    const what = of.category ?? of.label ?? of.question ?? of.text ?? "";
    const most = Math.max(...rows.map((row) => Math.abs(row.weight ?? 0))) || 1;
    rows.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    return h("div", {class: "why"},
      h("p", null, h("b", null, `${of_table}, row ${of_row}`), what ? `: ${what}` : "", " ",
        timed(of) && moment(of.start_s, interval(of))),
      h("p", {class: "facts"}, h("span", null, `${target} ${score(rows[0].score)}`),
        h("span", null, `${score(rows[0].score_hidden)} without the evidence`),
        h("span", null, `weights by ${method}`)),
      h("ul", {class: "scores"}, rows.slice(0, 12).map((row) => h("li", null,
        h("span", null, row.kind !== "word" && timed(row)
          && [moment(row.start_s, interval(row)), " "], row.text ?? row.kind),
        h("meter", {min: 0, max: 1, value: Math.abs(row.weight ?? 0) / most,
          class: row.weight < 0 ? "against" : null, "aria-label": row.weight < 0
            ? "lowers it" : "raises it"}),
        h("span", {class: "number"}, (row.weight > 0 ? "+" : "") + score(row.weight))))));
  });
  return section("Explanations", all.slice(0, 4), all.length > 4 && h("details", null,
    h("summary", null, `${all.length - 4} more`), all.slice(4)));
}

function scores(title, rows) {
  return section(title, rows.length && h("ul", {class: "scores"}, rows.map((row) => h("li", null,
    h("span", null, row.label),
    row.score === null ? h("span") : h("meter", {min: 0, max: 1, value: row.score,
      "aria-label": row.label}),
    h("span", {class: "number"}, score(row.score))))));
}

const SHOWN_ROWS = 50;

function cell(column, row) {
  const value = row[column.name];
  const attributes = {class: column.kind === "number" ? "number" : null, "data-v": value ?? ""};
  if (value === null || value === undefined) return h("td", attributes, "–");
  if (column.kind === "number" && column.unit === "s")
    return h("td", {...attributes, class: "number"}, /(^|_)(start|end|time|keyframe|at)(_s)?$/
      .test(column.name) ? moment(value, clock(value)) : number(value));
  if (column.kind === "number") return h("td", attributes, number(value));
  if (column.kind === "bool") return h("td", attributes, value ? "yes" : "no");
  return h("td", attributes, value);
}

function anyTable(name, rows, leftOut, open) {
  const table = meta.tables[name];
  const body = h("tbody", null);
  const heads = table.columns.map((column) => h("th", {scope: "col", title: column.doc || null,
    class: column.kind === "number" ? "number" : null},
  h("button", {type: "button", class: "sort"}, column.name,
    column.unit && column.unit !== "s" ? ` (${column.unit})` : "")));
  const element = h("table", {class: "plain"}, h("thead", null, h("tr", null, heads)), body);
  const made = rows.map((row) => h("tr", null, table.columns.map((column) => cell(column, row))));
  let most = SHOWN_ROWS;
  const limit = () => [...body.rows].forEach((row, i) => { row.hidden = i >= most; });
  body.append(...made);
  sortable(element, made, body, limit);
  limit();
  const all = made.length > most && h("button", {type: "button", class: "quiet", onclick: (event) => {
    most = Infinity;
    limit();
    event.target.remove();
  }}, `Show all ${made.length.toLocaleString("en")} rows`);
  return h("details", {class: "table", open}, h("summary", null, `${name} `,
    h("span", {class: "more"}, plural(rows.length + (leftOut ?? 0), "row"))),
  table.doc && h("p", {class: "facts"}, table.doc),
  h("div", {class: "wide", tabindex: 0, role: "region", "aria-label": name}, element), all,
  leftOut ? h("p", {class: "facts"}, `${plural(leftOut, "more row")} in the results folder.`)
    : null);
}

function facts(about) {
  const pair = (name, value) => value === null || value === undefined || value === "" ? []
    : [h("dt", null, name), h("dd", null, value)];
  return section("File", h("dl", {class: "pairs"},
    pair("path", about.path && h("span", {class: "path"}, about.path)),
    pair("picture", about.width && `${about.width} × ${about.height} px`),
    pair("frames", about.n_frames?.toLocaleString("en")),
    pair("clips", about.n_clips), pair("segments", about.n_segments),
    pair("words from", about.transcript_source), pair("language", about.language),
    pair("starts at", about.start_offset_s ? `${number(about.start_offset_s)} s` : null)));
}

function showVideo(i) {
  const shown = video(i), images = pictures(i), duration = lengthOf(shown), about = shown.about;
  $("video-title").textContent = shown.id;
  const errors = shown.rows("errors");
  const line = timeline(shown, images, duration);
  const summary = shown.rows("summarisation")[0]?.summary;
  const sentiment = shown.rows("sentiment_videos")[0];
  const left = [
    section("Summary", summary && h("p", {class: "lead"}, summary)),
    moderation(shown, images),
    answers(shown),
    explanations(shown),
    spoken("Chapters", shown.rows("chapters"), {text: (row) => row.title}),
    transcript(shown),
    spoken("Captions", captionsOf(shown), {text: (row) => row.caption}),
  ].flat().filter(Boolean);
  const right = [
    scores("Labels", [...shown.rows("classification")].sort((a, b) => (b.score ?? -1)
      - (a.score ?? -1)).slice(0, 12)),
    sentiment?.label && section("Sentiment", h("p", {class: "facts"},
      h("span", null, markOf(sentiment.label)),
      h("span", null, `mean score ${score(sentiment.score)}`))),
    facts(about),
  ].filter(Boolean);
  const others = Object.entries(meta.tables).filter(([name, table]) => !table.known
    && shown.rows(name).length).map(([name]) => anyTable(name, shown.rows(name),
    shown.leftOut[name], true));
  const cut = Object.entries(shown.leftOut).filter(([name]) => meta.tables[name].known)
    .map(([name, count]) => `${plural(count, "more row")} of ${name}`);
  $("video-body").replaceChildren(...[
    h("p", {class: "facts"}, h("span", null, markOf(about.status)),
      duration ? h("span", null, clock(duration)) : null,
      about.n_clips ? h("span", null, plural(about.n_clips, "clip")) : null,
      about.n_segments ? h("span", null, plural(about.n_segments, "segment")) : null),
    errors.length ? h("div", {class: "trouble"}, h("h2", {class: "sr"}, "Errors"),
      errors.map((row) => h("p", null, h("b", null, row.task ? `${row.stage} ${row.task}`
        : row.stage), `: ${row.message} `, h("span", {class: "more"}, row.error_type)))) : null,
    line?.node,
    h("div", {class: "columns" + (left.length ? "" : " single")},
      left.length ? h("div", null, left) : null, h("div", null, right)),
    others.length ? section("Other tables", others) : null,
    cut.length ? h("p", {class: "notice"}, `Not shown here: ${cut.join(", ")}.`) : null,
  ].filter(Boolean));
  current = {i, go: () => {}};
  if (line) {
    const marked = [...document.querySelectorAll(".spoken li")].filter((item) => item.dataset.end);
    current.go = (seconds, move = true) => {
      const t = Math.max(0, Math.min(duration, seconds));
      $("line").style.setProperty("--at", duration ? t / duration : 0);
      const slide = $("slide");
      if (move) slide.value = t;
      slide.setAttribute("aria-valuetext", `${clock(t)} of ${clock(duration)}`);
      showMoment(shown, images, duration, t);
      for (const item of marked) {
        const here = Number(item.dataset.start) <= t && t < Number(item.dataset.end);
        if (here) item.setAttribute("aria-current", "true");
        else item.removeAttribute("aria-current");
      }
      history.replaceState(null, "", address(i, t));
    };
    for (const later of line.after) later();
  }
  const order = rowsOfList.length ? [...list.tBodies[0].rows].filter((row) => !row.hidden)
    .map((row) => Number(row.dataset.i)) : [];
  const position = order.indexOf(i);
  const step = (element, to) => {
    if (to === undefined) {
      element.removeAttribute("href");
      element.setAttribute("aria-disabled", "true");
    } else {
      element.setAttribute("href", address(to));
      element.removeAttribute("aria-disabled");
    }
  };
  step($("previous"), position > 0 ? order[position - 1] : undefined);
  step($("next"), position >= 0 ? order[position + 1] : undefined);
}

// --- what the address says ---------------------------------------------------------------------

let listAddress = "#";
let last = null;  // the video that was shown last, to which the focus goes back

function show(focus = true) {
  const parameters = new URLSearchParams(location.hash.slice(1).replace(/\+/g, "%2B"));
  const i = parameters.has("video") ? meta.videos.indexOf(parameters.get("video")) : -1;
  for (const chart of drawn.splice(0)) chart.finalize();
  $("tip").hidden = true;
  $("overview").hidden = i >= 0;
  $("video").hidden = i < 0;
  if (i >= 0) {
    const t = Number(parameters.get("t"));
    showVideo(i);
    last = i;
    $("back").setAttribute("href", listAddress);
    document.title = `${meta.videos[i]} – ${meta.title}`;
    const first = parameters.has("t") && Number.isFinite(t) ? t : 0;
    current.go(first);
    if (focus) { scrollTo(0, 0); $("video-title").focus({preventScroll: true}); }
  } else {
    current = null;
    document.title = meta.title;
    restore(parameters);
    if (!$("charts").hasChildNodes()) overviewCharts();
    if (focus && last !== null) rowsOfList[last]?.querySelector("a").focus();
  }
}

addEventListener("hashchange", () => show());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();  // its fragment would take the place of what the address says
  $("main").focus();
});
document.addEventListener("click", (event) => {
  if (event.target.closest?.(".figures a"))
    setTimeout(() => $("videos-title").scrollIntoView({block: "start"}));
  if (event.target.closest?.("a[href^='#video=']") && $("video").hidden)
    listAddress = location.hash || "#";
});

// --- keys, theme, paper ------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input[type=search], select, textarea");
  if (event.key === "Escape") {
    if (!$("video").hidden) location.hash = listAddress.slice(1);
    else if (event.target === $("search")) { $("search").value = state.q = ""; keep(); filter(); }
    return;
  }
  if (typing) return;
  if (event.key === "/") {
    event.preventDefault();
    if (!$("video").hidden) { location.hash = listAddress.slice(1); last = null; }
    setTimeout(() => $("search").focus());
  } else if (event.key === "[" && !$("video").hidden) $("previous").click();
  else if (event.key === "]" && !$("video").hidden) $("next").click();
  else if ((event.key === "ArrowDown" || event.key === "ArrowUp")
      && event.target.closest?.("#videos tbody")) {
    const rows = [...list.tBodies[0].rows].filter((row) => !row.hidden);
    const at = rows.indexOf(event.target.closest("tr"));
    const next = rows[at + (event.key === "ArrowDown" ? 1 : -1)];
    if (next) { event.preventDefault(); next.querySelector("a").focus(); }
  }
});

const THEMES = ["auto", "light", "dark"];
function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
  try { localStorage.setItem("vbkit-theme", name); } catch { /* private window */ }
}
$("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(
  document.documentElement.dataset.theme ?? "auto") + 1) % THEMES.length]));
try {
  const kept = localStorage.getItem("vbkit-theme");
  if (THEMES.includes(kept)) setTheme(kept);
} catch { /* private window */ }

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const each of opened) each.open = true;
  // Charts shrink to the paper, and the keyframes above them have to shrink alike.
  const line = $("line"), width = line?.clientWidth;
  if (width) for (const [name, pixels] of Object.entries(margins()))
    line.style.setProperty(`--${name}`, `${100 * pixels / width}%`);
});
addEventListener("afterprint", () => {
  for (const each of opened) each.open = false;
  for (const name of Object.keys(margins())) $("line")?.style.removeProperty(`--${name}`);
});

// Cells say which column they are, where the list is shown as cards.
const names = [...list.tHead.rows[0].cells].map((head) => head.textContent.trim());
for (const row of rowsOfList) [...row.cells].forEach((each, i) => {
  each.dataset.name = names[i];
});
$("theme").hidden = $("tools").hidden = false;
show(false);
})();
