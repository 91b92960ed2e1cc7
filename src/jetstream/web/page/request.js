// What the user asks for, as the URL of a subscription and as programs that make the same one.

import { WIRES } from "./wires.js";

/** Return the parameters of a subscription in an order that reads well, as pairs. */
export function parameters(asked, names, kinds) {
  const pairs = [];
  const add = (name, values) => values.forEach((value) => pairs.push([name, value]));
  add(names.collections, asked.collections);
  add(names.dids, asked.dids);
  if (asked.kinds.length < kinds.length) add("kinds", asked.kinds);
  if (asked.text) add("text", [asked.text]);
  return pairs;
}

/** Return a query as people write it: `:`, `/` and `*` are allowed there (RFC 3986, section 3.4). */
export function query(pairs) {
  const text = pairs.map(([name, value]) => `${name}=${encode(String(value))}`).join("&");
  return text && `?${text}`;
}

function encode(value) {
  const encoded = encodeURIComponent(value).replaceAll("'", "%27");
  return encoded.replaceAll("%3A", ":").replaceAll("%2F", "/");
}

/** A subscription. `base` is the URL of the page, `served` the wire of `/subscribe` there, `nowUs` the server's clock. */
export class Subscription {
  constructor(asked, { base, served, nowUs }) {
    this.asked = asked;
    this.wire = WIRES[asked.wire];
    this.base = base;
    this.served = served;
    this.nowUs = nowUs;
  }

  /** Return the path and query. `cursor` replaces the start, and `more` are other parameters. */
  path(cursor = this.#start(), more = []) {
    const { asked, wire, served } = this;
    const pairs = parameters(asked, wire.names, wire.kinds);
    if (cursor) pairs.push(["cursor", cursor]);
    if (asked.wire === "classic" && served !== "classic") pairs.push(["wire", "classic"]);
    return wire.path + query([...pairs, ...more]);
  }

  /** Return the URL of the WebSocket. */
  socketUrl(...args) {
    const url = new URL(this.path(...args), this.base);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    return url.href;
  }

  /** Return the URL of the same path for a plain request, which is told why it is refused. */
  plainUrl(...args) {
    return new URL(this.path(...args), this.base).href;
  }

  /** Return the URL of the same events without a WebSocket, or of their explanation. */
  httpUrl(path) {
    const { asked } = this;
    const pairs = parameters(asked, WIRES.v1.names, this.wire.kinds);
    if (asked.start) pairs.push(["cursor", asked.start]);
    pairs.push(["wire", asked.wire]);
    return new URL(path + query(pairs), this.base).href;
  }

  /** Return where to begin. The v2 wire takes no ages and dates. */
  #start() {
    const { start, wire } = this.asked;
    if (!start || wire !== "v2") return start;
    const age = /^-(\d+)([mh])$/.exec(start);
    if (!age) return String(Date.parse(start) * 1000);
    return String(this.nowUs() - Number(age[1]) * { m: 60, h: 3600 }[age[2]] * 1e6);
  }
}

/** Programs that make the same subscription, by name. */
export const SNIPPETS = {
  websocat: (each) => `websocat '${each.socketUrl()}'`,
  curl: (each) => `curl -N '${each.httpUrl("events")}'`,
  Python: (each) => `import asyncio
import json

from websockets.asyncio.client import connect  # pip install websockets

URL = ${JSON.stringify(each.socketUrl())}


async def main():
    async with connect(URL, max_size=None) as socket:
        async for message in socket:
            print(json.loads(message), flush=True)


asyncio.run(main())
`,
  JavaScript: (each) => `const socket = new WebSocket(
  ${JSON.stringify(each.socketUrl())},
);
socket.onmessage = ({ data }) => console.log(JSON.parse(data));
socket.onclose = ({ code, reason }) => console.log("closed:", code, reason);
`,
};
