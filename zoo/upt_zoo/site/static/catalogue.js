// The catalogue: search, filters, and a card for each adapter.

import { getJson } from "./api.js";
import { announce, breakable, h, show, withVariables } from "./dom.js";
import { count, headName, plural, purpose, score, size } from "./text.js";

const SHOWN = 60;
const WIDE = "(min-width: 34rem)"; // where filters do not push the adapters off the screen
const MIB = 1024 * 1024;
const SIZES = {
  "up to ½ MiB": [0, MIB / 2],
  "½ to 1 MiB": [MIB / 2, MIB],
  "over 1 MiB": [MIB, Infinity],
};
const ORDERS = {
  name: (a, b) => a.name.localeCompare(b.name),
  score: (a, b) => (mainScore(b)?.value ?? -1) - (mainScore(a)?.value ?? -1),
  newest: (a, b) => (b.created ?? "").localeCompare(a.created ?? ""),
  size: (a, b) => a.size_bytes - b.size_bytes,
};
// a filter: its key in the address, its name, and what it looks at
const FILTERS = [
  { key: "task", name: "Task", of: (adapter) => headName(adapter.head) },
  { key: "backbone", name: "Backbone", of: (adapter) => adapter.backbone },
  { key: "metric", name: "Metric", of: (adapter) => adapter.metric },
  { key: "size", name: "Size", of: (adapter) => sizeName(adapter.size_bytes) },
  { key: "licence", name: "Licence", of: (adapter) => adapter.licence },
  { key: "commercial", name: "Data for business", of: (adapter) => adapter.commercial_use },
];

/** Return one version of each name: the newest that is not yanked, else the newest. */
export function newestOf(adapters) {
  const newest = new Map();
  for (const each of adapters) {
    const before = newest.get(each.name);
    if (!each.yanked || !before || before.yanked) newest.set(each.name, each);
  }
  return [...newest.values()];
}

/** Return the metric that decides, of the first split that has it. */
export function mainScore(adapter) {
  const names = Object.keys(adapter.metrics);
  const name =
    names.find((each) => each === `dev/${adapter.metric}`) ??
    names.find((each) => each.endsWith(`/${adapter.metric}`));
  return name === undefined ? null : { name, value: adapter.metrics[name] };
}

export function sizeName(bytes) {
  return Object.keys(SIZES).find((name) => bytes > SIZES[name][0] && bytes <= SIZES[name][1]) ?? "";
}

/** Tell whether an adapter has all the words and passes all filters of a query. */
export function isFound(adapter, query) {
  const { name, description, data, labels, method, fields } = adapter;
  const text = [name, description, data, method, ...labels, ...fields].join(" ").toLowerCase();
  const words = (query.get("q") ?? "").toLowerCase().split(/\s+/);
  return (
    words.every((word) => text.includes(word)) &&
    FILTERS.every(({ key, of }) => !query.get(key) || of(adapter) === query.get(key))
  );
}

export async function showCatalogue(page, { setup, query }) {
  show(page, h("h1", {}, "Catalogue"), h("p", { class: "muted" }, "Reading the catalogue …"));
  const { adapters } = await getJson("data/catalogue.json");
  const known = newestOf(adapters);
  const list = h("div", { class: "grid cards", id: "adapters" });
  const found = h("p", { class: "muted", id: "found" });
  let most = SHOWN;

  const refresh = () => {
    const matching = known.filter((each) => isFound(each, query));
    matching.sort(ORDERS[query.get("sort")] ?? ORDERS.name);
    show(found, `${plural(matching.length, "adapter")} of ${count(known.length)}`);
    show(
      list,
      matching.slice(0, most).map(makeCard),
      matching.length === 0 ? nothing(clear) : null,
    );
    if (matching.length > most) list.append(makeMore(matching.length - most));
    announce(found.textContent);
  };
  const change = (key, value) => {
    if (value) query.set(key, value);
    else query.delete(key);
    most = SHOWN;
    history.replaceState(null, "", `#/${query.size ? `?${query}` : ""}`);
    refresh();
  };
  const clear = () => {
    for (const key of [...query.keys()]) query.delete(key);
    change("q", "");
    show(filters, makeFilters(known, query, change));
  };
  const makeMore = (left) =>
    h(
      "button",
      {
        click: () => {
          most += SHOWN;
          refresh();
        },
      },
      `Show more: ${count(left)} left`,
    );

  const filters = h("form", {
    class: "find",
    role: "search",
    submit: (event) => event.preventDefault(),
  });
  show(filters, makeFilters(known, query, change));
  show(page, makeHero(setup, known, adapters), filters, found, list);
  refresh();
}

function makeHero(setup, known, adapters) {
  const backbones = new Set(known.map((each) => each.backbone_digest)).size;
  const facts = `${plural(known.length, "adapter")}, ${plural(adapters.length, "version")}, ${plural(backbones, "backbone")}.`;
  return h(
    "div",
    { class: "hero" },
    h("h1", {}, "Catalogue"),
    h("p", { class: "lead" }, `Small adapters on one frozen encoder. ${facts}`),
    setup.is_live
      ? h("a", { class: "button primary", href: "#/try" }, "Ask them all at once")
      : h(
          "p",
          { class: "muted small" },
          "To ask them, run upt-server: the same page has a playground there.",
        ),
  );
}

function makeFilters(known, query, change) {
  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "Name, task, label, data …",
    value: query.get("q") ?? "",
    input: (event) => change("q", event.target.value.trim()),
  });
  const selects = FILTERS.map(({ key, name, of }) => {
    const values = [...new Set(known.map(of))].filter(Boolean).sort();
    return makeSelect(key, name, ["", ...values], query, change);
  });
  const isOpen = matchMedia(WIDE).matches || FILTERS.some(({ key }) => query.get(key));
  return [
    h("label", { class: "search" }, "Search", h("kbd", { "aria-hidden": "true" }, "/"), search),
    h(
      "details",
      { open: isOpen },
      h("summary", {}, "Filters and order"),
      h(
        "div",
        { class: "filters" },
        selects,
        makeSelect("sort", "Order", Object.keys(ORDERS), query, change),
      ),
    ),
  ];
}

function makeSelect(key, name, values, query, change) {
  const options = values.map((value) =>
    h("option", { value, selected: query.get(key) === value }, value || "any"),
  );
  const listen = (event) => change(key, event.target.value);
  return h("label", {}, name, h("select", { name: key, change: listen }, options));
}

function makeCard(adapter) {
  const address = `#/adapters/${adapter.name}/${adapter.version}`;
  return h(
    "article",
    { class: "card" },
    h(
      "div",
      { class: "row" },
      h("h2", {}, h("a", { class: "cover", href: address }, breakable(adapter.name))),
      h("span", { class: "pill" }, adapter.version),
    ),
    h("p", { class: "grow" }, purpose(adapter.description, adapter.head, adapter.labels)),
    makeScore(adapter),
    h(
      "p",
      { class: "tags" },
      [
        headName(adapter.head),
        adapter.method,
        size(adapter.size_bytes),
        `licence ${adapter.licence}`,
        ...adapter.aliases,
      ].map((text) => h("span", {}, text)),
      adapter.yanked ? h("span", { class: "warn" }, "yanked") : null,
    ),
  );
}

function makeScore(adapter) {
  const main = mainScore(adapter);
  if (main === null) return h("p", { class: "muted small" }, "no metric recorded");
  return h(
    "div",
    { class: "score" },
    h("span", { class: "muted small" }, main.name),
    h("strong", {}, score(main.value)),
    withVariables(h("span", { class: "meter", "aria-hidden": "true" }), {
      "--share": Math.max(0, main.value / 100),
    }),
  );
}

function nothing(clear) {
  return h(
    "div",
    { class: "empty" },
    h("p", {}, "No adapter has all of this."),
    h("button", { click: clear }, "Clear search and filters"),
  );
}
