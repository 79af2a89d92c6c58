// The live view: what /metrics says, every two seconds, since the view was opened.

import { getJson, getText } from "./api.js";
import { drawLines } from "./charts.js";
import { h, show, withVariables } from "./dom.js";
import { byLabel, mean, parseMetrics, quantile, total } from "./metrics.js";
import { count, milliseconds, percent, size } from "./text.js";

const EVERY_MS = 2000;
const KEPT = 150; // readings: five minutes
const RESIDENTS_EVERY = 5; // readings

export async function showLive(page, { setup, signal }) {
  show(page, h("h1", {}, "Live"));
  const lacking = lackOf(setup);
  if (lacking) return void page.append(h("p", {}, lacking));
  const first = await read();
  const view = makeView();
  show(
    page,
    h(
      "div",
      { class: "hero" },
      h("h1", {}, "Live"),
      h("p", { class: "lead" }, runsOf(first.samples)),
    ),
    view.element,
  );
  const turn = makeTurn(view, await makeCharts(view.charts), first);
  await turn();
  repeat(turn, view.error, signal); // beside the frame, until another view is opened
}

function lackOf(setup) {
  if (!setup.is_live) return "This is a page of files. A server shows here what it does.";
  if (!setup.has_metrics) return "This server shows no metrics; it was started with --no-metrics.";
  return "";
}

/** Return what reads once and shows what happened since the reading before. */
function makeTurn(view, charts, before) {
  const history = [];
  let readings = 0;
  return async () => {
    const after = await read();
    const moment = momentOf(before, after);
    before = after;
    history.push(moment);
    if (history.length > KEPT) history.shift();
    charts.forEach((chart) => chart(history));
    show(view.tiles, makeTiles(moment, after.samples));
    show(view.adapters, makeAdapters(after.samples));
    if (readings % RESIDENTS_EVERY === 0) {
      show(view.residents, makeResidents(await getJson("../v1/adapters")));
    }
    readings += 1;
  };
}

async function repeat(turn, complaint, signal) {
  while (!signal.aborted) {
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    if (signal.aborted || document.hidden) continue;
    try {
      await turn();
      complaint.hidden = true;
    } catch (error) {
      show(complaint, `${error.message} Trying again.`);
      complaint.hidden = false;
    }
  }
}

async function read() {
  const text = await getText("../metrics");
  return { at: Date.now(), samples: parseMetrics(text) };
}

function momentOf(before, after) {
  const seconds = (after.at - before.at) / 1000 || 1;
  const between = (name, labels) =>
    Math.max(0, total(after.samples, name, labels) - total(before.samples, name, labels));
  const inMs = (value) => (value === null ? null : value * 1000);
  const latency = (share) =>
    inMs(quantile(before.samples, after.samples, "upt_request_duration_seconds", share));
  const tokens = mean(before.samples, after.samples, "upt_batch_tokens");
  const all = between("upt_requests_total");
  return {
    at: after.at / 1000,
    requests: all / seconds,
    failed: (all - between("upt_requests_total", { code: "OK" })) / seconds,
    median: latency(0.5),
    slow: latency(0.95),
    rows: mean(before.samples, after.samples, "upt_batch_rows"),
    distinct: mean(before.samples, after.samples, "upt_batch_distinct_adapters"),
    fill:
      tokens === null
        ? null
        : (100 * tokens) / (total(after.samples, "upt_limit", { of: "batch_tokens" }) || 1),
    waiting: total(after.samples, "upt_queue_depth"),
    rejected: between("upt_rejected_total") / seconds,
  };
}

function makeView() {
  const view = {
    error: h("p", { class: "error", role: "alert", hidden: true }),
    tiles: h("div", { class: "grid tiles" }),
    charts: h("div", { class: "grid plots" }),
    residents: h("div", { class: "grid" }),
    adapters: h("div", { class: "grid" }),
  };
  const part = (title, content) => h("section", { class: "panel" }, h("h2", {}, title), content);
  view.element = h(
    "div",
    {},
    view.error,
    view.tiles,
    view.charts,
    h(
      "div",
      { class: "columns" },
      part("Adapters that were asked", view.adapters),
      part("In memory", view.residents),
    ),
  );
  return view;
}

async function makeCharts(parent) {
  const wanted = [
    { title: "Inputs a second", lines: ["failed", "all"], keys: ["failed", "requests"] },
    { title: "Time of a call, ms", lines: ["95 %", "median"], keys: ["slow", "median"] },
    { title: "Fill of a batch, %", lines: ["tokens of the most"], keys: ["fill"], highest: 100 },
    { title: "Rows that wait", lines: ["rows"], keys: ["waiting"] },
  ];
  return Promise.all(
    wanted.map(async ({ title, lines, keys, highest }) => {
      const box = h("section", { class: "panel" }, h("h2", {}, title));
      parent.append(box);
      const update = await drawLines(box, {
        lines,
        label: title,
        hasTime: true,
        highest,
        values: [[], ...keys.map(() => [])],
      });
      return (history) => {
        const last = keys.map(
          (key, index) => `${lines[index]} ${history.at(-1)[key]?.toFixed(1) ?? "nothing"}`,
        );
        update(
          [history.map((each) => each.at), ...keys.map((key) => history.map((each) => each[key]))],
          `${title}: ${last.join(", ")}`,
        );
      };
    }),
  );
}

function makeTiles(moment, samples) {
  const memory = total(samples, "upt_adapter_bytes");
  const limit = total(samples, "upt_limit", { of: "adapter_bytes" }) || 1;
  const { median, slow, rows, distinct, fill } = moment;
  const tiles = [
    [
      "Inputs a second",
      moment.requests.toFixed(1),
      `${moment.failed.toFixed(1)} failed, ${moment.rejected.toFixed(1)} turned away`,
    ],
    [
      "Median call",
      median === null ? "–" : milliseconds(median),
      slow === null ? "no call just now" : `95 % within ${milliseconds(slow)}`,
    ],
    [
      "Rows of a batch",
      rows === null ? "–" : rows.toFixed(1),
      rows === null
        ? "no batch just now"
        : `${distinct.toFixed(1)} adapters, ${fill.toFixed(0)} % full`,
    ],
    ["Memory for adapters", size(memory), `${percent(memory / limit)} of ${size(limit)}`],
  ];
  return tiles.map(([name, value, more]) =>
    h(
      "div",
      { class: "tile" },
      h("span", { class: "muted" }, name),
      h("strong", {}, value),
      h("span", { class: "muted small" }, more),
    ),
  );
}

function makeAdapters(samples) {
  const asked = [...byLabel(samples, "upt_requests_total", "adapter")]
    .sort((a, b) => b[1] - a[1])
    .slice(0, 20);
  if (asked.length === 0) return h("p", { class: "muted" }, "Nobody has asked yet.");
  const most = asked[0][1] || 1;
  const bars = h(
    "div",
    { class: "bars" },
    asked.map(([name, inputs]) => {
      const ms = mean([], samples, "upt_adapter_request_duration_seconds", { adapter: name });
      const bar = withVariables(h("span", { class: "meter", "aria-hidden": "true" }), {
        "--share": inputs / most,
      });
      return h(
        "div",
        { class: "bar-row strong" },
        h("span", {}, name),
        bar,
        h(
          "span",
          { class: "number" },
          `${count(inputs)}${ms === null ? "" : ` × ${milliseconds(ms * 1000)}`}`,
        ),
      );
    }),
  );
  return [h("p", { class: "muted small" }, "Inputs since the start, and their mean time."), bars];
}

function makeResidents({ adapters }) {
  const resident = adapters.filter((each) => each.resident);
  return [
    h(
      "p",
      { class: "muted small" },
      `${count(resident.length)} of ${count(adapters.length)} versions; others are loaded when asked for.`,
    ),
    h(
      "ul",
      { class: "plain chips" },
      resident.map(({ identity }) =>
        h(
          "li",
          { class: "chip" },
          h("a", { href: `#/adapters/${identity.name}/${identity.version}` }, identity.name),
          h("small", {}, identity.version),
        ),
      ),
    ),
  ];
}

function runsOf(samples) {
  const labels = samples.find((each) => each.name === "upt_build_info")?.labels;
  return labels ? `upt ${labels.version}, ${labels.precision}, ${labels.runner}` : "";
}
