"use strict";
const at = (id) => document.getElementById(id);
const squares = new Map();
let boards = new Map(), queue = new Map(), latest = "", pending = false, newest = null;

const make = (name, text, attributes = {}) => {
  const found = document.createElement(name);
  if (text !== undefined) found.textContent = text;
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  return found;
};
const rows = (id, lists, none) => at(id).replaceChildren(...(lists.length ? lists : [[none]]).map((cells) => {
  const row = make("tr");
  row.append(...cells.map((cell) => make("td", cell)));
  return row;
}));
const said = (board) => `${board.name} (${board.site}${board.kind ? ", " + board.kind : ""}): ${board.state}, ${board.done} trials${board.reason ? ": " + board.reason : ""}`;

function showMap() {
  const sites = new Map();
  for (const board of boards.values()) {
    if (!sites.has(board.site)) sites.set(board.site, []);
    sites.get(board.site).push(board);
  }
  squares.clear();
  const parts = [];
  for (const [site, found] of sites) {
    const room = make("div");
    for (const board of found) {
      const square = make("i");
      square.dataset.name = board.name;
      square.dataset.state = board.state;
      squares.set(board.name, square);
      room.append(square);
    }
    parts.push(make("h3", `${site} (${found.length})`), room);
  }
  at("map").replaceChildren(...parts);
}

function showRun(run) {
  if (!run) { at("sum").textContent = "No fleet run yet."; return; }
  at("bar").max = run.trials;
  at("bar").value = run.done;
  const told = Object.entries(run.statuses).map(([name, count]) => `${count} ${name}`).join(", ");
  at("sum").textContent = `${run.done} of ${run.trials} trials on ${run.boards} boards. ${told}`;
  const counts = new Map();
  for (const board of boards.values()) counts.set(board.state, (counts.get(board.state) || 0) + 1);
  at("key").replaceChildren(...[...counts].sort().map(([state, count]) => {
    const item = make("li");
    const square = make("i");
    square.dataset.state = state;
    item.append(square, `${state} ${count}`);
    return item;
  }));
}

function showSick() {
  const sick = [...boards.values()].filter((board) => board.state === "given up" || board.state === "failed");
  rows("sick", sick.slice(0, 50).map((board) => [board.name, board.state, board.reason]), "None.");
}

const vector = (name, attributes, text) => {
  const found = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  if (text !== undefined) found.textContent = text;
  return found;
};
const digits = (value) => (value && Math.abs(value) < 1e-3 ? value.toExponential(1) : Number(value.toPrecision(3)).toString());

function plot(id, points, label, options) {
  const wide = Math.max(300, Math.min(560, at(id).clientWidth || 560)), high = 300, left = 52, bottom = 34; // letters stay readable on a phone
  const picture = vector("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": label });
  if (!points.length) { at(id).replaceChildren(make("p", options.none)); return; }
  const span = (values, log) => {
    let [low, top] = [Math.min(...values), Math.max(...values)];
    if (log) { low /= 1.1; top *= 1.1; } else { const pad = (top - low || options.least || Math.abs(top) * 0.02 || 1) * 0.1; low -= pad; top += pad; }
    return [low, top];
  };
  const [x0, x1] = span(points.map((p) => p.x), options.logX), [y0, y1] = span(points.map((p) => p.y), options.logY);
  const share = (v, a, b, log) => (log ? Math.log(v / a) / Math.log(b / a) : (v - a) / (b - a));
  const px = (x) => left + share(x, x0, x1, options.logX) * (wide - left - 10);
  const py = (y) => high - bottom - share(y, y0, y1, options.logY) * (high - bottom - 10);
  picture.append(vector("line", { class: "axis", x1: left, x2: wide - 10, y1: high - bottom, y2: high - bottom }),
    vector("line", { class: "axis", x1: left, x2: left, y1: 10, y2: high - bottom }),
    vector("text", { x: left, y: high - 4 }, options.x),
    vector("text", { x: 4, y: 12 }, options.y));
  for (const [value, anchor] of [[x0, "start"], [x1, "end"]]) picture.append(vector("text", { x: px(value), y: high - bottom + 14, "text-anchor": anchor }, options.tellX(value)));
  for (const value of [y0, y1]) picture.append(vector("text", { x: left - 4, y: py(value) + (value === y0 ? 0 : 22), "text-anchor": "end" }, options.tellY(value)));
  for (const kind of options.front ? new Set(points.map((p) => p.series)) : []) {
    let best = -Infinity;
    const own = points.filter((p) => p.series === kind).sort((a, b) => a.x - b.x || b.y - a.y);
    const front = own.filter((p) => p.y > best && ((best = p.y), true));
    picture.append(vector("polyline", { class: "front", points: front.map((p) => `${px(p.x)},${py(p.y)}`).join(" ") }));
  }
  const series = [...new Set(points.map((p) => p.series))];
  for (const [place, name] of series.entries()) {
    const group = vector("g", { class: `s${place % 6}` }), own = points.filter((p) => p.series === name);
    if (options.lines) group.append(vector("polyline", { class: "line", points: own.map((p) => `${px(p.x)},${py(p.y)}`).join(" ") }));
    for (const p of own) {
      const dot = vector("circle", { cx: px(p.x), cy: py(p.y), r: 4, class: p.odd ? "odd" : "" });
      dot.append(vector("title", {}, p.told));
      group.append(dot);
    }
    picture.append(group);
  }
  at(id).replaceChildren(picture, make("p", series.map((name, place) => `${["blue", "orange", "green", "violet", "red", "teal"][place % 6]}: ${name}`).join("; ")));
}

function showTradeoffs(found) {
  const points = found.filter((each) => each.accuracy !== null && each.p50 > 0).map((each) => ({
    x: each.p50, y: each.accuracy, series: each.kind || "no kind", odd: each.emulated,
    told: `${each.model} ${each.recipe} ${each.format} on ${each.kind}: ${digits(each.p50)} ms, ${digits(100 * each.accuracy)} %${each.emulated ? " (emulated)" : ""}`,
  }));
  plot("pareto", points, "Accuracy over median time", { x: "median ms (log)", y: "accuracy", logX: true, front: true,
    tellX: digits, tellY: (v) => digits(100 * v) + " %", none: "No result with an accuracy yet." });
}

async function showHistory() {
  const query = new URLSearchParams({ board: at("board").value, model: at("model").value });
  const found = await (await fetch(`/api/history?${query}`)).json();
  const points = found.flatMap((each) => each.points.filter((p) => p.p50 > 0).map((p) => ({
    x: Date.parse(p.at), y: p.p50, series: `${each.recipe} ${each.format}`, odd: p.status !== "ok",
    told: `${p.at} ${each.recipe} ${each.format}: ${digits(p.p50)} ms, ${p.status}`,
  })));
  const day = (v) => new Date(v).toISOString().slice(0, 16).replace("T", " ");
  plot("history", points, "Median time over dates", { x: "", y: "ms", logY: true, lines: true, least: 3.6e6, tellX: day, tellY: digits, none: "No result of this model on this board." });
}

function choices(id, names, kept) {
  const select = at(id);
  select.replaceChildren(...names.map((name) => make("option", name, { value: name })));
  if (names.includes(kept)) select.value = kept;
}

async function load(run = "") {
  const state = await (await fetch(`/api/state${run ? "?run=" + encodeURIComponent(run) : ""}`)).json();
  latest = state.runs.length ? state.runs[0].name : "";
  boards = new Map(state.boards.map((board) => [board.name, board]));
  at("run").replaceChildren(...state.runs.map((each) => make("option", `${each.at.slice(0, 16).replace("T", " ")}, ${each.boards} boards`, { value: each.name })));
  at("run").value = run || latest;
  showMap();
  showRun(state.runs.find((each) => each.name === (run || latest)));
  showSick();
  showTradeoffs(state.tradeoffs);
  rows("rolled", state.rollouts.map((each) => [each.candidate, each.state, Object.entries(each.counts).map(([name, count]) => `${count} ${name}`).join(", ")]), "None.");
  const shown = state.boards.find((board) => board.done) || state.boards[0] || { name: "" }; // one that has something to show
  choices("board", [at("board").value || shown.name].filter(Boolean), at("board").value);
  choices("model", state.models, at("model").value);
  document.documentElement.dataset.loaded = String(Math.round(performance.now()));
  showHistory();
  rows("slow", (await (await fetch("/api/regressions")).json()).slice(0, 30).map((each) => [each.board, `${each.model} ${each.recipe} ${each.format}`, `${digits(each.ratio)} x`]), "None for sure.");
}

function draw() {
  pending = false;
  let sick = false;
  for (const board of queue.values()) {
    const square = squares.get(board.name);
    if (!square) continue;
    sick = sick || board.reason !== "" || boards.get(board.name).reason !== "";
    boards.set(board.name, board);
    if (square.dataset.state !== board.state) square.dataset.state = board.state;
  }
  queue.clear();
  if (newest) showRun(newest);
  if (sick) showSick();
  document.documentElement.dataset.drawn = String(Number(document.documentElement.dataset.drawn || 0) + 1);
}

function listen() {
  const events = new EventSource("/events");
  events.onopen = () => { at("live").textContent = "live"; };
  events.onerror = () => { at("live").textContent = "not connected"; };
  events.onmessage = (event) => {
    const news = JSON.parse(event.data);
    if (!news.boards) return;
    if (news.runs[0] && news.runs[0].name !== latest) { load(); return; }
    if (at("run").value !== latest) return;
    for (const board of news.boards) queue.set(board.name, board);
    newest = news.runs[0];
    if (!pending) { pending = true; requestAnimationFrame(draw); }
  };
}

at("map").addEventListener("pointerover", (event) => {
  const board = boards.get(event.target.dataset.name);
  if (board) at("one").textContent = said(board);
});
at("map").addEventListener("click", (event) => {
  const board = boards.get(event.target.dataset.name);
  if (!board) return;
  at("one").textContent = said(board);
  if (at("board").length < boards.size) choices("board", [board.name], board.name);
  at("board").value = board.name;
  showHistory();
});
at("run").addEventListener("change", () => load(at("run").value));
for (const id of ["board", "model"]) at(id).addEventListener("change", showHistory);
// Thousands of boards are listed when somebody wants to choose, not at each load.
for (const event of ["pointerdown", "focus"]) at("board").addEventListener(event, () => {
  if (at("board").length < boards.size) choices("board", [...boards.keys()], at("board").value);
});
const still = new URLSearchParams(location.search).has("still");
if (location.search) history.replaceState(null, "", still ? "/?still" : "/");
load().then(() => { if (still) at("live").textContent = "still"; else listen(); });
