"""Cards as trees of elements, so that a page can build them without reading any HTML."""

from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from pydantic import JsonValue

_WITH_TEXT = ("text", "code_inline", "fence", "code_block")
_ALIASES = {"fence": "pre", "code_block": "pre"}
# what becomes an element of this name; of anything else only what is in it
_ELEMENTS = {
    *("h1", "h2", "h3", "h4", "h5", "h6", "p", "ul", "ol", "li", "blockquote", "hr", "br"),
    *("strong", "em", "code", "pre", "a", "table", "thead", "tbody", "tr", "th", "td"),
}
_SCHEMES = ("https://", "http://")
_MAX_CHARS = 50_000  # parsing some texts takes a second then, and four times as long for twice that
_REST = "The rest of this card is left out here: upt-zoo show prints it."


def parse_card(text: str) -> list[JsonValue]:
    """Parse Markdown into a list of texts and ``{"tag", "children", "href"}``; HTML in it is text.

    Only ``a`` has ``href``, an address on the web. Of a card of more than 50,000 characters it is
    the beginning, and a note that says so.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tree = _read_all(SyntaxTreeNode(parser.parse(text[:_MAX_CHARS])).children)
    return [*tree, {"tag": "p", "children": [_REST]}] if len(text) > _MAX_CHARS else tree


def _read_all(nodes: Sequence[SyntaxTreeNode]) -> list[JsonValue]:
    return [made for node in nodes for made in _read(node)]


def _read(node: SyntaxTreeNode) -> list[JsonValue]:
    if node.type == "softbreak":
        return [" "]
    children = _read_all(node.children)
    if not children and node.type in _WITH_TEXT:
        children = [node.content]
    tag = _ALIASES.get(node.type, node.tag)
    if tag not in _ELEMENTS:
        return children
    element: dict[str, JsonValue] = {"tag": tag, "children": children}
    href = str(node.attrs.get("href", ""))
    if tag == "a" and href.startswith(_SCHEMES):
        element["href"] = href
    return [element]
