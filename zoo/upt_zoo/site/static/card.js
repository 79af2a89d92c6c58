// A card's tree as elements: only those named here, only texts inside, only links to the web.

import { h } from "./dom.js";

const ALLOWED = new Set(
  "h1 h2 h3 h4 h5 h6 p ul ol li blockquote hr br strong em code pre a table thead tbody tr th td".split(
    " ",
  ),
);
const DEEPER = { h1: "h3", h2: "h4", h3: "h5", h4: "h6" };

/** Make the elements of a card; its headings stand below those of the page. */
export function makeCard(nodes) {
  return nodes.map((node) => {
    if (typeof node === "string") return node;
    if (!ALLOWED.has(node.tag)) return makeCard(node.children);
    const element = h(DEEPER[node.tag] ?? node.tag, attributesOf(node), makeCard(node.children));
    return node.tag === "table"
      ? h(
          "div",
          { class: "scroll", tabindex: "0", role: "group", "aria-label": "A table of the card" },
          element,
        )
      : element;
  });
}

function attributesOf({ tag, href }) {
  const isAddress = tag === "a" && /^https?:\/\//.test(href ?? "");
  return isAddress ? { href, rel: "noreferrer noopener", target: "_blank" } : {};
}
