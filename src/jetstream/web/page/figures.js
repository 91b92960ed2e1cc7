// The figures of `/status.json` as they are shown. Each may be missing: a server that has just started does not
// know all of them.

import { Tile } from "./chart.js";
import { byId, element, fill, pairsOf, setText, show } from "./dom.js";
import { bytes, duration, number, percent, UNKNOWN } from "./format.js";

const UPSTREAMS_MAX = 20;
const ROLES = { ingest: "reads upstream", edge: "serves subscribers" };
const milliseconds = (value) => (typeof value === "number" ? `${number(value)} ms` : UNKNOWN);

const tiles = {
  events: new Tile("Events in, per second", number, { color: "blue" }),
  messages: new Tile("Messages out, per second", number, { color: "green" }),
  subscribers: new Tile("Subscribers", number, { color: "violet" }),
  lag: new Tile("Lag behind upstream", duration, { color: "amber", hint: "age of upstream's last message when it arrived" }),
  loop: new Tile("Loop delay, p99", milliseconds, { color: "rose", hint: "how late the event loop of the server is" }),
};

/** Put the tiles into the page. */
export function begin() {
  byId("tiles").append(...Object.values(tiles).map((tile) => tile.node));
}

/** Show a status. */
export function showStatus(status) {
  showState(status);
  showReasons(status);
  showTiles(status);
  showUpstreams(status);
  showProcesses(status);
  showEvents(status.events);
  pairs("log", log(status.log));
  pairs("subscribers", subscribers(status.subscribers));
  pairs("out", out(status));
  pairs("counts", counts(status));
  pairs("process", server(status));
  setText(byId("version"), `jetstream ${status.version}`);
}

function showState(status) {
  const text = !status.ready ? "not ready" : status.health === "ok" ? "ready" : status.health;
  setState(text, !status.ready ? "bad" : status.health === "ok" ? "good" : "warning");
}

/** Show a word about the whole server. It is read out when it changes. */
export function setState(text, level) {
  const state = byId("state");
  setText(state, text);
  state.className = `pill ${level}`;
}

/** Show the conditions of `/health` and the checks of `/ready`, each with what to do. */
function showReasons(status) {
  const failed = new Set(status.not_ready.map((each) => each.check));
  const conditions = new Set(status.reasons.map((each) => each.condition));
  const level = (name) => (failed.has(name) ? "bad" : "warning");
  const reasons = [
    // A condition of the same name says more.
    ...status.not_ready.filter((each) => !conditions.has(each.check)).map((each) => ({ ...each, name: each.check, level: "bad" })),
    ...status.reasons.map((each) => ({ ...each, name: each.condition, level: level(each.condition) })),
  ];
  const list = byId("reasons");
  show(list, reasons.length > 0);
  fill(list, reasons, () => reasons.map(reason));
}

function reason({ name, text, hint, level }) {
  return element(
    "li",
    { class: `notice ${level}` },
    element("p", {}, element("code", {}, name), ` ${text}`),
    element("p", {}, element("strong", {}, "What to do: "), hint),
  );
}

/** Return the lag of an upstream; null without a connection: that of the last frame says nothing about now. */
function lagOf({ state, lag_s }) {
  return state === "reconnecting" ? null : lag_s;
}

function showTiles({ events, out, subscribers, upstreams, edge, log, loop_delay_ms, delivery_ms, history }) {
  const lags = upstreams.map(lagOf).filter((each) => each !== null);
  const ages = upstreams.map((each) => each.last_frame_age_s).filter((each) => each !== null);
  const age = ages.length ? `last frame ${duration(Math.min(...ages))} ago` : "no frame yet";
  tiles.events.set(number(events.per_s), `${number(events.total)} since the start`);
  tiles.messages.set(number(out.messages_per_s), `${bytes(out.bytes_per_s)}/s`);
  const { total, lagging, catching_up } = subscribers;
  tiles.subscribers.set(number(total), `${number(lagging)} lagging, ${number(catching_up)} catching up`);
  if (edge) tiles.lag.set(duration(edge.lag_s), "behind the log, as an edge");
  else tiles.lag.set(duration(lags.length ? Math.min(...lags) : null), age);
  tiles.loop.set(milliseconds(loop_delay_ms.p99), `delivery p99 ${milliseconds(delivery_ms.p99)}`);
  const draw = (tile, name) => tile.draw(history[name], history.step_s, history.end_us);
  draw(tiles.events, "events_per_s");
  draw(tiles.messages, "messages_per_s");
  draw(tiles.subscribers, "subscribers");
  draw(tiles.lag, "lag_s");
  draw(tiles.loop, "loop_delay_p99_ms");
}

function showUpstreams({ upstreams, pds, waiting, edge }) {
  const some = upstreams.slice(0, UPSTREAMS_MAX);
  const rows = some.map((each) => ({
    name: each.name,
    state: each.state,
    cells: [duration(lagOf(each)), duration(each.last_frame_age_s), number(each.frames_per_s), number(each.seq)],
    title: each.url,
  }));
  fill(byId("upstreams"), { rows, pds, waiting, edge, more: upstreams.length - some.length }, upstreamRows);
}

function upstreamRows({ rows, pds, waiting, edge, more }) {
  const rest = [];
  if (edge) rest.push(`none: an edge serves the log of another process, which wrote to it ${duration(edge.writer_silent_s)} ago`);
  if (more > 0) rest.push(`and ${number(more)} more upstreams`);
  if (pds) rest.push(`PDSes: ${pds.connected} connected, ${pds.idle} idle, ${pds.reconnecting} reconnecting`);
  if (waiting) rest.push(`${number(waiting)} messages wait for a key, or for those before them`);
  return table(["Upstream", "State", "Lag", "Last frame", "Frames/s", "Sequence"], rows, rest);
}

/** Show each process of a server that has several. */
function showProcesses({ processes }) {
  show(byId("processes-card"), processes.length > 0);
  setText(byId("process-title"), processes.length ? "All processes" : "Process");
  const rows = processes.map((each) => ({
    name: each.name,
    state: each.ready ? "ready" : "not ready",
    cells: [
      number(each.subscribers),
      number(each.events_per_s),
      number(each.messages_per_s),
      duration(each.lag_s),
      percent(each.cpu),
      bytes(each.rss_bytes),
      number(each.ended),
      each.pid === null ? UNKNOWN : String(each.pid),
    ],
    note: ROLES[each.role] ?? each.role,
  }));
  fill(byId("processes"), rows, processRows);
}

function processRows(rows) {
  const figures = ["Subscribers", "Events/s", "Messages/s", "Lag", "CPU", "Memory", "Restarts", "PID"];
  return table(["Process", "State", ...figures], rows);
}

/** Return the parts of a table: each row has a name, perhaps with a note, a state, and numbers. `lines` follow. */
function table(head, rows, lines = []) {
  const cells = head.map((title, place) => element("th", { scope: "col", class: place > 1 && "number" }, title));
  const body = rows.map(({ name, state, cells, title, note }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", title }, name, ...(note ? [element("span", { class: "muted" }, ` ${note}`)] : [])),
      element("td", {}, element("span", { class: `dot ${state.replace(" ", "-")}` }), state),
      ...cells.map((text) => element("td", { class: "number" }, text)),
    ),
  );
  const last = lines.map((text) => element("tr", {}, element("td", { colspan: head.length, class: "muted" }, text)));
  return [element("thead", {}, element("tr", {}, ...cells)), element("tbody", {}, ...body, ...last)];
}

function showEvents({ by_kind, by_collection }) {
  bars("collections", by_collection.map(({ collection, per_s }) => [collection, per_s]), "no events in the last seconds");
  bars("kinds", Object.entries(by_kind), "");
}

/** Show rates as a table with bars. */
function bars(id, rates, nothing) {
  const top = Math.max(...rates.map(([, rate]) => rate ?? 0)) || 1;
  const none = element("tr", {}, element("td", { class: "muted" }, nothing));
  const rows = () => (rates.length ? rates.map(([name, rate]) => bar(name, rate, top)) : [none]);
  fill(byId(id), rates, () => [element("tbody", {}, ...rows())]);
}

function bar(name, rate, top) {
  const filled = element("span", { class: "bar", "aria-hidden": "true" });
  filled.style.inlineSize = `${((rate ?? 0) / top) * 100}%`;
  const title = element("th", { scope: "row" }, element("span", {}, name), filled);
  return element("tr", {}, title, element("td", { class: "number" }, number(rate)));
}

function pairs(id, rows) {
  fill(byId(id), rows, pairsOf);
}

function log(log) {
  const limit = log.retention_bytes === null ? "" : ` of ${bytes(log.retention_bytes)}`;
  return [
    ["span", `${duration(log.span_s)} of ${duration(log.retention_s)}`],
    ["size", `${bytes(log.bytes)}${limit}`],
    ["growth a day", bytes(log.bytes_per_day)],
    ["events", number(log.events)],
    ["disk free", bytes(log.disk_free_bytes)],
    ["written to disk", `${bytes(log.written_bytes_per_s)}/s`],
    ...(log.damaged ? [["damaged parts", number(log.damaged)]] : []),
    ...(log.writable ? [] : [["writable", "no"]]),
  ];
}

function subscribers(found) {
  return [
    ["connected", `${number(found.total)} of ${number(found.max)}`],
    ...Object.entries(found.by_wire).map(([name, count]) => [`wire ${name}`, number(count)]),
    ...Object.entries(found.by_compression).map(([name, count]) => [
      name === "none" ? "not compressed" : `compressed, ${name}`,
      number(count),
    ]),
    ["catching up", number(found.catching_up)],
    ["lagging", number(found.lagging)],
  ];
}

function out({ out, delivery_ms }) {
  return [
    ["messages", number(out.messages_total)],
    ["bytes", bytes(out.bytes_total)],
    
    ["delivery p50, p99", `${number(delivery_ms.p50)}, ${milliseconds(delivery_ms.p99)}`],
  ];
}

/** Return what was dropped, disconnected and refused, by reason. */
function counts(status) {
  const kinds = { drops: "dropped", disconnects: "disconnected", refused: "refused" };
  const rows = Object.entries(kinds).flatMap(([key, label]) =>
    Object.entries(status[key])
      .filter(([, count]) => count)
      .map(([reason, count]) => [`${label}: ${reason}`, number(count)]),
  );
  return rows.length ? rows : [["none so far", ""]];
}

function server({ process, loop_delay_ms, now_us, started_us }) {
  return [
    ["running for", duration((now_us - started_us) / 1e6)],
    ["CPU", `${percent(process.cpu)} of a core`],
    ["memory", bytes(process.rss_bytes)],
    ["open files", `${number(process.open_files)} of ${number(process.open_files_max)}`],
    ["loop delay p50, p99", `${number(loop_delay_ms.p50)}, ${milliseconds(loop_delay_ms.p99)}`],
  ];
}
