// The playground: a text or two through many adapters in one call, and so in one batch.

import { getJson, postJson } from "./api.js";
import { makeAnswer, makeGateMap } from "./answers.js";
import { newestOf } from "./catalogue.js";
import { announce, h, show, takeTurns, withVariables } from "./dom.js";
import { SAMPLES } from "./samples.js";
import { milliseconds, plural, purpose } from "./text.js";

const STEPS = { load: "loadMs", tokenise: "tokenizeMs", wait: "queueMs", compute: "forwardMs" };
const FIRST = 16; // chosen at first, so that the first answer comes soon in a large zoo

export async function showPlayground(page, { setup, query }) {
  if (!setup.is_live) return showHint(page);
  show(page, h("h1", {}, "Playground"), h("p", { class: "muted" }, "Reading the catalogue …"));
  const { adapters, backbone_digest: backbone } = await getJson("data/catalogue.json");
  const fitting = adapters.filter((each) => each.backbone_digest === backbone);
  const named = new Set((query.get("adapters") ?? "").split(",").filter(Boolean));
  const offered = offeredOf(fitting, named);
  const texts = SAMPLES[0].texts;
  const inputs = ["First text", "Second text"].map((name, index) =>
    makeTextArea(name, index, texts[index]),
  );
  const boxes = offered.map((adapter, index) =>
    makeBox(adapter, named.size ? named.has(referenceOf(adapter)) : index < FIRST),
  );
  const withGates = h("input", { type: "checkbox", id: "gates" });
  const results = h("div", { id: "results", "aria-busy": "false" });
  const begin = takeTurns();

  const run = async (event) => {
    event?.preventDefault();
    await answer(
      results,
      offered.filter((_, index) => boxes[index].firstChild.checked),
      inputs.map((each) => each.value),
      withGates.checked,
      begin(),
    );
  };
  const fillIn = (sample) => {
    inputs.forEach((input, index) => {
      input.value = sample.texts[index];
    });
    run();
  };
  const choose = (isChosen) =>
    boxes.forEach((box) => {
      box.firstChild.checked = isChosen(box);
    });
  const form = h(
    "form",
    {
      class: "panel play",
      submit: run,
      keydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event);
      },
    },
    h(
      "div",
      { class: "row wrap", role: "group", "aria-label": "Examples" },
      h("span", { class: "muted small" }, "Examples"),
      SAMPLES.map((sample) =>
        h("button", { type: "button", class: "chip", click: () => fillIn(sample) }, sample.name),
      ),
    ),
    h(
      "div",
      { class: "texts" },
      labelled(inputs[0], "First text", "a sentence, a premise, a question"),
      labelled(inputs[1], "Second text", "where the task has one: a sentence, a paragraph"),
    ),
    h(
      "fieldset",
      {},
      h("legend", {}, "Adapters"),
      h("div", { class: "chips" }, boxes),
      h(
        "div",
        { class: "row" },
        h("button", { type: "button", class: "link", click: () => choose(() => true) }, "all"),
        h("button", { type: "button", class: "link", click: () => choose(() => false) }, "none"),
      ),
    ),
    h(
      "div",
      { class: "row wrap" },
      h("button", { class: "primary", id: "run" }, "Run in one batch"),
      h("kbd", {}, "Ctrl Enter"),
      h("label", { class: "check" }, withGates, "gates of every layer (a second pass)"),
    ),
  );
  if (offered.length === 0) return showEmpty(page);
  show(
    page,
    h(
      "div",
      { class: "hero" },
      h("h1", {}, "Playground"),
      h("p", { class: "lead" }, "One text, many adapters, one forward pass of the encoder."),
    ),
    form,
    results,
  );
}

async function answer(results, chosen, [first, second], hasGates, isLast) {
  const asked = chosen.filter((adapter) => adapter.fields.length === 1 || second.trim());
  const inputs = inputsOf(asked, [first, second], hasGates);
  if (inputs.length === 0) {
    show(
      results,
      h(
        "p",
        { class: "error", role: "alert" },
        chosen.length ? "These adapters need a second text." : "Choose an adapter first.",
      ),
    );
    return;
  }
  results.setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    const prediction = await postJson("../v1/predict", { inputs });
    if (!isLast()) return;
    const tookMs = performance.now() - began;
    const ordered = [1, 2].flatMap((fields) =>
      asked.filter((each) => each.fields.length === fields),
    );
    show(
      results,
      makeSummary(prediction, tookMs, { hasGates, left: chosen.length - asked.length }),
      h(
        "div",
        { class: "grid answers" },
        prediction.outputs.map((output, index) =>
          makeResult(output, ordered[index], [first, second]),
        ),
      ),
    );
    announce(
      `${plural(prediction.outputs.length, "answer")} in ${milliseconds(prediction.timings.totalMs)}`,
    );
  } catch (error) {
    if (isLast()) show(results, h("p", { class: "error", role: "alert" }, error.message));
  } finally {
    if (isLast()) results.setAttribute("aria-busy", "false");
  }
}

/** Put adapters that take the same texts into one input each, so that each text is sent once. */
export function inputsOf(adapters, texts, hasGates) {
  return [1, 2]
    .map((fields) => ({
      adapters: adapters.filter((each) => each.fields.length === fields).map(referenceOf),
      texts: texts.slice(0, fields),
      options: { gates: hasGates },
    }))
    .filter((input) => input.adapters.length > 0);
}

function referenceOf({ name, version }) {
  return `${name}:${version}`;
}

/** Offer the newest version of each name, and those that the address names. */
function offeredOf(fitting, named) {
  const newest = new Set(newestOf(fitting));
  return fitting.filter((each) => newest.has(each) || named.has(referenceOf(each)));
}

function makeTextArea(name, index, text) {
  const area = h("textarea", { id: `text-${index}`, rows: 4, spellcheck: "false" });
  area.value = text;
  return area;
}

function labelled(area, name, hint) {
  return h("label", { for: area.id }, name, h("span", { class: "muted small" }, hint), area);
}

function makeBox(adapter, isChosen) {
  const box = h("input", { type: "checkbox", value: referenceOf(adapter) });
  box.checked = isChosen;
  return h(
    "label",
    { class: "chip", title: purpose(adapter.description, adapter.head, adapter.labels) },
    box,
    adapter.name,
    adapter.fields.length === 2 ? h("small", {}, "2 texts") : null,
  );
}

function makeSummary({ outputs, timings, batches }, tookMs, { hasGates, left }) {
  const adapters =
    batches.length === 1 ? `, ${plural(batches[0].distinctAdapters, "adapter")} in it` : "";
  const rows = batches.reduce((sum, batch) => sum + batch.rows, 0);
  return h(
    "div",
    { class: "panel summary" },
    h(
      "p",
      {},
      h("strong", {}, plural(outputs.length, "answer")),
      " in ",
      h("strong", {}, milliseconds(timings.totalMs)),
      ` in the server, ${milliseconds(tookMs)} with the way there and back; ${plural(batches.length, "forward pass", "forward passes")}, ${plural(rows, "row")}${adapters}.`,
    ),
    makeTimings(timings, hasGates ? "gates" : "rest"),
    left
      ? h("p", { class: "muted small" }, `${plural(left, "adapter")} left out: no second text.`)
      : null,
  );
}

function makeTimings(timings, last) {
  const steps = Object.entries(STEPS).map(([name, key]) => [name, timings[key]]);
  const known = steps.reduce((sum, [, value]) => sum + value, 0);
  steps.push([last, Math.max(0, timings.totalMs - known)]);
  const total = timings.totalMs || 1;
  return [
    h(
      "div",
      { class: "stack", "aria-hidden": "true" },
      steps.map(([name, value]) =>
        withVariables(h("span", { class: `step-${name}` }), { "--share": value / total }),
      ),
    ),
    h(
      "ul",
      { class: "plain legend small" },
      steps.map(([name, value]) =>
        h("li", {}, h("i", { class: `step-${name}` }), `${name} ${milliseconds(value)}`),
      ),
    ),
  ];
}

function makeResult(output, adapter, texts) {
  const { name, version } = output.adapter;
  return h(
    "article",
    { class: "card answer", "data-adapter": name },
    h(
      "div",
      { class: "row" },
      h("h2", {}, h("a", { href: `#/adapters/${name}/${version}` }, name)),
      h("span", { class: "pill" }, version),
    ),
    h(
      "p",
      { class: "muted small" },
      purpose(adapter.description, adapter.head, adapter.labels),
    ),
    makeAnswer(output, texts[adapter.fields.length - 1]),
    makeGateMap(output, adapter.gates),
    h(
      "p",
      { class: "muted small foot" },
      plural(output.tokens, "token"),
      output.truncated ? ", cut off" : "",
      output.windows > 1 ? `, ${output.windows} windows` : "",
    ),
  );
}

function showHint(page) {
  show(
    page,
    h("h1", {}, "Playground"),
    h("p", {}, "This is a page of files. Run upt-server to ask adapters:"),
    h("pre", {}, h("code", {}, "upt-server run")),
  );
}

function showEmpty(page) {
  show(
    page,
    h("h1", {}, "Playground"),
    h("p", {}, "There is no adapter for this server's backbone yet. Pull one:"),
    h("pre", {}, h("code", {}, "upt-zoo pull sst2")),
  );
}
