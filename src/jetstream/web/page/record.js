// One event in a dialog: its JSON, indented, with links to what it names.

import { byId, copy, element, outside, pairsOf, setText } from "./dom.js";
import { clockTime, utc } from "./format.js";

const VIEWER = "https://pdsls.dev/";
const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;
const AT_URI = /^at:\/\/did:[a-z]+:[^\s/]+(?:\/[^\s/]+){0,2}$/;
const DID = /^did:[a-z]+:[\w.:%-]+$/;
const WEB = /^https?:\/\/[^\s]+$/;

/** Return where a public viewer shows a repository or a record. */
export const viewerUrl = (uri) => VIEWER + encodeURI(uri);

/** The dialog. */
export class EventDialog {
  constructor(onClose) {
    this.dialog = byId("event");
    byId("close-event").addEventListener("click", () => this.dialog.close());
    byId("copy-event").addEventListener("click", (event) => copy(byId("record").textContent, event.target));
    this.dialog.addEventListener("close", onClose);
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  /** Whether it is open. */
  get open() {
    return this.dialog.open;
  }

  /** Show an event and its message, as it came. */
  show(event, text) {
    setText(byId("event-title"), [event.action, event.collection].filter(Boolean).join(" · "));
    byId("event-links").replaceChildren(...linksOf(event));
    byId("event-facts").replaceChildren(...pairsOf(factsOf(event)));
    byId("record").replaceChildren(...pretty(text));
    this.dialog.showModal();
    this.dialog.scrollTop = 0;
  }
}

function linksOf({ did, collection, rkey, action }) {
  const repo = `at://${did}`;
  const links = [outside(viewerUrl(repo), "Repository")];
  if (collection && action !== "delete") links.push(outside(viewerUrl(`${repo}/${collection}/${rkey}`), "Record"));
  if (collection === "app.bsky.feed.post" && action !== "delete") {
    links.push(outside(encodeURI(`https://bsky.app/profile/${did}/post/${rkey}`), "Post on bsky.app"));
  }
  return links;
}

function factsOf({ did, collection, rkey, rev, cid, position }) {
  const rows = [
    ["repository", did],
    ["record", collection && `${collection}/${rkey}`],
    ["revision", rev],
    ["CID", cid],
    ["stored", `${utc(position)} (${clockTime(position, { fraction: true })} here)`],
    ["position", String(position)],
  ];
  return rows.filter(([, value]) => value);
}

/**
 * Return JSON with indentation, as nodes.
 *
 * It is not parsed: numbers beyond 2^53 stay as they are.
 */
export function pretty(text) {
  const tokens = text.match(TOKEN) ?? [];
  const nodes = [];
  let depth = 0;
  const indent = () => nodes.push(`\n${"  ".repeat(depth)}`);
  tokens.forEach((token, place) => {
    const [before, after] = [tokens[place - 1], tokens[place + 1]];
    if ("}]".includes(token)) {
      depth -= 1;
      if (!"{[".includes(before)) indent();
      nodes.push(token);
    } else if ("{[".includes(token)) {
      depth += 1;
      nodes.push(token);
      if (!"}]".includes(after)) indent();
    } else if (token === ",") {
      nodes.push(token);
      indent();
    } else if (token === ":") {
      nodes.push(": ");
    } else {
      nodes.push(colored(token, after === ":"));
    }
  });
  return nodes;
}

function colored(token, isKey) {
  if (isKey) return element("span", { class: "key" }, token);
  if (!token.startsWith('"')) return element("span", { class: "literal" }, token);
  const url = urlOf(JSON.parse(token));
  const node = element("span", { class: "text" }, token);
  if (url) node.replaceChildren('"', outside(url, token.slice(1, -1)), '"');
  return node;
}

/** Return where a text leads, if it is an address. */
function urlOf(text) {
  if (DID.test(text)) return viewerUrl(`at://${text}`);
  if (AT_URI.test(text)) return viewerUrl(text);
  return WEB.test(text) && URL.canParse(text) ? text : null;
}
