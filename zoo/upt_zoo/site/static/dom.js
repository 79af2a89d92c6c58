// Builds elements. What is shown reaches the document as text nodes only, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: functions listen, booleans are switches, the rest are attributes. */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** Make an element of SVG. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** Replace what is in an element. */
export function show(parent, ...children) {
  parent.replaceChildren(...nodesOf(children));
  return parent;
}

/** Set custom properties of CSS, which a policy without inline styles allows to scripts. */
export function withVariables(element, variables) {
  for (const [name, value] of Object.entries(variables)) element.style.setProperty(name, value);
  return element;
}

/** Return a name that may be broken behind its underscores where it is too long for a line. */
export function breakable(name) {
  return name.split(/(?<=_)/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
}

/** Say something to those who do not see the page change. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** Return what begins a turn and returns whether that is still the last one begun. */
export function takeTurns() {
  let last = 0;
  return () => {
    const own = ++last;
    return () => own === last;
  };
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...nodesOf(children));
  return element;
}

function nodesOf(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined);
}
