// Elements of the page. Text of servers and events is only ever set as text: the page has no `innerHTML`,
// and its policy (Trusted Types) would refuse it.

const SVG = "http://www.w3.org/2000/svg";

/** Return the element with an ID. */
export const byId = (id) => document.getElementById(id);

/** Return a new element, with attributes, and with children that are nodes or texts. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** Return a new element of SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Return a link to another site. It opens in a new tab, and tells that site nothing. */
export function outside(href, text) {
  return element("a", { href, target: "_blank", rel: "noopener noreferrer" }, text);
}

/** Return pairs of a name and a text, as the children of a `dl`. */
export function pairsOf(rows) {
  return rows.map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text)));
}

/** Set the text of a node if it is another one, so that a selection stays. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show or hide a node. */
export function show(node, shown) {
  node.hidden = !shown;
}

const shown = new WeakMap(); // what `fill` has put into a node

/** Replace the children of a node by those that `build` returns for some data, if the data has changed. */
export function fill(node, data, build) {
  const key = JSON.stringify(data);
  if (shown.get(node) === key) return;
  shown.set(node, key);
  node.replaceChildren(...build(data));
}

/** Copy a text, and say so in `place`. Without a secure context there is only the older way. */
export async function copy(text, place) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = copyBySelection(text, place.closest("dialog") ?? document.body);
  }
  place.dataset.label ??= place.textContent;
  setText(place, done ? "copied" : "the browser did not allow it: select and copy the text");
  setTimeout(() => setText(place, place.dataset.label), 3000);
}

function copyBySelection(text, parent) {
  const before = document.activeElement;
  const area = element("textarea", { class: "hidden", "aria-hidden": "true", readonly: true }, text);
  parent.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus();
  return done;
}
