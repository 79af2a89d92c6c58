// One adapter's answer: labels with scores, a span or entities in their text, a number, a vector.

import { h, svg, withVariables } from "./dom.js";
import { drawGates } from "./gates.js";
import { count, cut, percent, plural } from "./text.js";

const SHOWN = 5;

/** Make what an output answers; `text` is the one that spans and entities point into. */
export function makeAnswer(output, text) {
  if (output.label) return makeLabels(output.label.scores, [output.label.label]);
  if (output.labelSet) return makeLabels(output.labelSet.scores, output.labelSet.labels);
  if (output.value) return h("p", { class: "big" }, output.value.value.toFixed(3));
  if (output.span) return makeSpan(output.span, text);
  if (output.entities) return makeEntities(output.entities.entities, text);
  return makeVector(output.embedding.vector);
}

/** Make the heat map of an output's gates, which have these names; null where it has none. */
export function makeGateMap({ gates }, names) {
  if (!gates?.length) return null;
  const layers = gates.map((layer) => layer.gates);
  return drawGates(names, layers, "How far each layer let each part in, 0 to 1");
}

function makeLabels(scores, given) {
  const sorted = [...scores].sort((a, b) => b.score - a.score);
  const rest = sorted.slice(SHOWN);
  const rows = (some) => some.map((each) => makeRow(each, given.includes(each.label)));
  return [
    given.length === 0 ? h("p", { class: "muted" }, "no label reaches the threshold") : null,
    h("div", { class: "bars" }, rows(sorted.slice(0, SHOWN))),
    rest.length
      ? h(
          "details",
          {},
          h("summary", {}, plural(rest.length, "more label")),
          h("div", { class: "bars" }, rows(rest)),
        )
      : null,
  ];
}

function makeRow({ label, score }, isGiven) {
  const bar = withVariables(h("span", { class: "meter", "aria-hidden": "true" }), {
    "--share": score,
  });
  return h(
    "div",
    { class: isGiven ? "bar-row strong" : "bar-row" },
    h("span", {}, label),
    bar,
    h("span", { class: "number" }, percent(score)),
  );
}

function makeSpan({ start, end, score, text: answer }, text) {
  const [before, marked, behind] = cut(text, start, end);
  return [
    h(
      "p",
      { class: "big" },
      answer || "no answer",
      " ",
      h("span", { class: "pill" }, percent(score)),
    ),
    h("blockquote", { class: "passage" }, before, h("mark", {}, marked), behind),
  ];
}

function makeEntities(entities, text) {
  if (entities.length === 0) return h("p", { class: "muted" }, "no entities");
  const parts = [];
  let last = 0;
  for (const { start, end, label, score } of entities) {
    parts.push(
      cut(text, last, start)[1],
      h("mark", { title: percent(score) }, cut(text, start, end)[1], h("small", {}, label)),
    );
    last = end;
  }
  return h("blockquote", { class: "passage" }, parts, cut(text, last, last)[2]);
}

function makeVector(vector) {
  const highest = Math.max(...vector.map(Math.abs)) || 1;
  const bars = vector.map((value, index) => {
    const height = (Math.abs(value) / highest) * 20;
    return svg("rect", { x: index, y: value < 0 ? 20 : 20 - height, width: 0.8, height });
  });
  return [
    svg(
      "svg",
      {
        class: "vector",
        viewBox: `0 0 ${vector.length} 40`,
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `${vector.length} numbers`,
      },
      bars,
    ),
    h("p", { class: "muted small" }, `${count(vector.length)} numbers`),
  ];
}
