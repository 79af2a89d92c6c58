// The page of one version: what it does, how good it is, where it comes from, how to ask it.

import { getJson, postJson } from "./api.js";
import { makeCard } from "./card.js";
import { drawLines } from "./charts.js";
import { h, show, takeTurns, withVariables } from "./dom.js";
import { drawGates } from "./gates.js";
import { sampleFor } from "./samples.js";
import { makeSnippets } from "./snippets.js";
import { count, day, headName, purpose, score, shortDigest, size } from "./text.js";

const PARTS = ["prompt", "prefix", "lora", "bottleneck", "gates", "head"];

export async function showAdapter(page, { setup, path: [name, version] }) {
  const adapter = await getJson(
    `data/adapters/${encodeURIComponent(name)}/${encodeURIComponent(version)}.json`,
  );
  show(
    page,
    makeTitle(adapter, setup),
    h(
      "div",
      { class: "columns" },
      h(
        "div",
        {},
        section("How to ask it", makeSnippets(adapter, setup)),
        section("How good it is", makeMetrics(adapter)),
        makeCurve(adapter),
        section("What each layer lets in", makeGates(adapter, setup)),
        section("Card", h("div", { class: "panel card-text" }, makeCard(adapter.card))),
      ),
      h(
        "aside",
        {},
        section("Facts", makeFacts(adapter)),
        section("Parameters", makeParts(adapter)),
        section("Versions and tags", makeVersions(adapter)),
        section("Where it comes from", makeLineage(adapter)),
      ),
    ),
  );
}

function section(title, ...content) {
  return h("section", {}, h("h2", {}, title), content);
}

function makeTitle(adapter, setup) {
  const reference = `${adapter.name}:${adapter.version}`;
  return h(
    "div",
    { class: "hero" },
    h("p", { class: "small" }, h("a", { href: "#/" }, "Catalogue"), " / ", adapter.name),
    h("h1", {}, adapter.name, " ", h("span", { class: "pill" }, adapter.version)),
    h(
      "p",
      { class: "lead" },
      purpose(adapter.task.description, adapter.head.kind, adapter.head.labels),
    ),
    adapter.yanked
      ? h(
          "p",
          { class: "error" },
          `Yanked on ${day(adapter.yanked)}: a bare name never means this version.`,
        )
      : null,
    setup.is_live
      ? h(
          "a",
          { class: "button primary", href: `#/try?adapters=${encodeURIComponent(reference)}` },
          "Try it",
        )
      : null,
  );
}

function makeFacts({ task, head, method, backbone, size_bytes, digest, licence, created }) {
  return facts([
    ["answers", headName(head.kind)],
    ["labels", head.labels?.join(", ")],
    ["reads", `${task.fields.join(" + ")}, at most ${count(task.max_tokens)} tokens`],
    ["method", method],
    ["backbone", `${backbone.hub_id}, ${backbone.layers} layers of ${backbone.hidden}`],
    ["size", size(size_bytes)],
    ["licence", licence],
    ["published", day(created)],
    ["digest", h("code", { title: digest }, shortDigest(digest))],
  ]);
}

function makeLineage({ lineage }) {
  return [
    facts([
      ["data", lineage.data],
      ["licence of the data", lineage.data_licence],
      ["for business", lineage.commercial_use],
      ["overlap", lineage.backbone_overlap ?? "none known with the backbone's own data"],
      ["seed", String(lineage.seed)],
      ["precision", lineage.precision],
      ["trained by", `upt ${lineage.code_version}`],
    ]),
    lineage.files.length ? h("p", { class: "muted small" }, "Files, by their digests") : null,
    h(
      "ul",
      { class: "plain small" },
      lineage.files.map((file) =>
        h(
          "li",
          {},
          `${file.name}, ${count(file.rows)} rows, `,
          h("code", { title: file.digest }, shortDigest(file.digest)),
        ),
      ),
    ),
    h(
      "details",
      {},
      h("summary", {}, "Recipe"),
      facts(
        Object.entries(lineage.recipe).map(([key, value]) => [
          key,
          typeof value === "string" ? value : JSON.stringify(value),
        ]),
      ),
    ),
  ];
}

function facts(rows) {
  const given = rows.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return h(
    "dl",
    { class: "facts" },
    given.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
  );
}

function makeMetrics({ metrics, task }) {
  const names = Object.keys(metrics);
  if (names.length === 0) return h("p", { class: "muted" }, "No metric was recorded.");
  return h(
    "div",
    { class: "panel bars" },
    names.map((name) =>
      makeBar(name, metrics[name] / 100, score(metrics[name]), name.endsWith(`/${task.metric}`)),
    ),
    h("p", { class: "muted small" }, `In percent. Versions are compared by ${task.metric}.`),
  );
}

function makeBar(name, share, text, isStrong) {
  const bar = withVariables(h("span", { class: "meter", "aria-hidden": "true" }), {
    "--share": Math.min(1, Math.max(0, share)),
  });
  return h(
    "div",
    { class: `bar-row${isStrong ? " strong" : ""}` },
    h("span", {}, name),
    bar,
    h("strong", {}, text),
  );
}

function makeParts({ parts, parameters }) {
  const known = PARTS.filter((name) => parts[name]);
  const total = known.reduce((sum, name) => sum + parts[name], 0) || 1;
  const bar = known.map((name) =>
    withVariables(h("span", { class: `part-${name}` }), { "--share": parts[name] / total }),
  );
  return [
    h("div", { class: "stack", "aria-hidden": "true" }, bar),
    h(
      "ul",
      { class: "plain legend small" },
      known.map((name) =>
        h("li", {}, h("i", { class: `part-${name}` }), `${name} ${count(parts[name])}`),
      ),
    ),
    facts([
      ["trained", count(parameters.trained)],
      ["served", count(parameters.served)],
      ["head", count(parameters.head)],
    ]),
  ];
}

function makeVersions({ name, version, versions, aliases, history }) {
  const links = [...versions]
    .reverse()
    .map((each) =>
      h(
        "li",
        {},
        each === version
          ? h("strong", {}, each)
          : h("a", { href: `#/adapters/${name}/${each}` }, each),
        each === version ? aliases.map((alias) => h("span", { class: "pill" }, alias)) : null,
      ),
    );
  const events = [...history]
    .reverse()
    .map((event) =>
      h("li", {}, h("time", { datetime: event.time }, day(event.time)), ` ${wordsOf(event)}`),
    );
  return [
    h("ul", { class: "plain" }, links),
    events.length
      ? h("ol", { class: "plain small history" }, events)
      : h("p", { class: "muted small" }, "No tag has moved yet."),
  ];
}

function wordsOf({ action, alias, before, after, reason }) {
  const from = before ? `from ${before} ` : "";
  const to = after ? `to ${after}` : "";
  const what = alias ? `${action} ${alias} ${from}${to}` : `${action} ${before ?? ""}`;
  return reason ? `${what.trim()}: ${reason}` : what.trim();
}

function makeCurve({ curve, task }) {
  if (!curve) return null;
  const { epochs, holdout, losses, best_epoch } = curve;
  const best = holdout && score(holdout[epochs.indexOf(best_epoch)]);
  const said = `${task.metric} on held-out rows by epoch; the best was epoch ${best_epoch} with ${best}`;
  return section(
    "How it learnt",
    holdout && drawByEpoch(epochs, holdout, { lines: [task.metric], label: said }),
    losses &&
      drawByEpoch(epochs, losses, {
        lines: ["loss"],
        label: "Mean loss on train rows by epoch",
        highest: Math.max(...losses, 0) * 1.15 || 1,
      }),
  );
}

function drawByEpoch(epochs, values, { label, ...options }) {
  const box = h("div", { class: "panel" });
  drawLines(box, { values: [epochs, values], label, ...options });
  return [box, h("p", { class: "muted small" }, `${label}.`)];
}

function makeGates(adapter, setup) {
  const names = adapter.gates;
  if (names.length === 0)
    return h(
      "p",
      { class: "muted" },
      "Nothing in this adapter is gated: every layer lets all of it in.",
    );
  const layers = adapter.backbone.layers;
  const drawing = h(
    "div",
    {},
    drawGates(names, Array(layers).fill({}), `${names.length} gates in each of ${layers} layers`),
  );
  if (!setup.is_live) {
    return h(
      "div",
      { class: "panel" },
      drawing,
      h(
        "p",
        { class: "muted small" },
        "How far a gate opens depends on the text. A server measures it.",
      ),
    );
  }
  return h("div", { class: "panel" }, makeGateForm(adapter, drawing), drawing);
}

function makeGateForm(adapter, drawing) {
  const sample = sampleFor(adapter);
  const inputs = adapter.task.fields.map((field, index) =>
    h("textarea", { id: `gate-${field}`, rows: 2, spellcheck: "false" }, sample[index] ?? ""),
  );
  const begin = takeTurns();
  const measure = async (event) => {
    event.preventDefault();
    const isLast = begin();
    const texts = inputs.map((input) => input.value);
    const asked = {
      adapter: `${adapter.name}:${adapter.version}`,
      texts,
      options: { gates: true },
    };
    try {
      const { outputs } = await postJson("../v1/predict", { inputs: [asked] });
      if (!isLast()) return;
      const layers = outputs[0].gates.map((layer) => layer.gates);
      show(
        drawing,
        drawGates(adapter.gates, layers, "How far each gate opened for this text, from 0 to 1"),
      );
    } catch (error) {
      if (isLast()) show(drawing, h("p", { class: "error", role: "alert" }, error.message));
    }
  };
  return h(
    "form",
    { class: "fields", submit: measure },
    adapter.task.fields.map((field, index) => h("label", {}, field, inputs[index])),
    h("button", {}, "Measure"),
  );
}
