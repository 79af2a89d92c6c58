// Gates as a table of layers and components, each cell as strong as the gate is open.

import { h, withVariables } from "./dom.js";

const LOW = 0.25; // gates begin at a half and stay near it: colours tell these apart
const HIGH = 0.75;

/** Draw how far each layer let each component in; `layers` has a map from name to 0…1 for each. */
export function drawGates(names, layers, caption) {
  const header = layers.map((_, index) => h("th", { scope: "col" }, String(index + 1)));
  const rows = names.map((name) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      layers.map((gates) => makeCell(gates[name])),
    ),
  );
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    h(
      "table",
      { class: "heat" },
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "layer"), header)),
      h("tbody", {}, rows),
    ),
  );
}

function makeCell(value) {
  if (value === undefined) return h("td", { class: "unknown" }, "–");
  const share = Math.min(1, Math.max(0, (value - LOW) / (HIGH - LOW)));
  return withVariables(h("td", {}, value.toFixed(2)), { "--gate": share.toFixed(3) });
}
