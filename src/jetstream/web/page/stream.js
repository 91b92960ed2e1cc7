// A subscription that reconnects: after the last event, so that none is lost or repeated.

import { ask, parameters } from "./token.js";
import { read } from "./wires.js";

const BACKOFF_FIRST_MS = 1000;
const BACKOFF_MAX_MS = 30_000;
const HEARTBEAT_S = 15;

/**
 * One subscription from `open` to `close`.
 *
 * `on.message` gets each message as text. `on.state` gets a word and a text: `connecting`; `open`; `waiting`, with
 * why it is not connected and when it tries again; `refused` and `token`, with the sentence of the server, after which
 * it does not try again.
 */
export class Stream {
  constructor(subscription, on) {
    this.subscription = subscription;
    this.on = on;
    this.cursor = undefined; // where to resume; undefined until a message has come
    this.last = undefined; // the last message, which is read only when it is needed
    this.failures = 0;
    this.closed = false;
  }

  /** Connect. */
  open() {
    this.on.state("connecting", "");
    const socket = new WebSocket(this.subscription.socketUrl(this.cursor, [["heartbeat", HEARTBEAT_S], ...parameters()]));
    let opened = false;
    this.socket = socket;
    socket.onopen = () => {
      opened = true;
      this.failures = 0;
      this.on.state("open", "");
    };
    socket.onmessage = ({ data }) => {
      this.last = data;
      if (!this.closed) this.on.message(data);
    };
    socket.onclose = (event) => this.closed || (opened ? this.#ended(event) : this.#failed());
  }

  /** End for good. */
  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.socket?.close();
  }

  /** Go on after the last message. The server's reason may have a better cursor: that of what was not wanted. */
  #ended({ code, reason }) {
    const named = /; cursor=(\d+)$/.exec(reason);
    this.#resumeAt(named ? Number(named[1]) : undefined);
    const text = reason.replace(/; cursor=\d+$/, "");
    this.#retry(text || (code === 1006 ? "the connection was lost" : `closed with ${code}`));
  }

  #resumeAt(cursor) {
    const position = this.last === undefined ? undefined : read(this.last).position;
    this.cursor = cursor ?? (position ? position + 1 : this.cursor);
    this.last = undefined;
  }

  /** Ask why there was no upgrade: a browser does not tell, so a plain request for the same path does. */
  async #failed() {
    const { status, text, after } = await why(this.subscription.plainUrl(this.cursor, [["heartbeat", HEARTBEAT_S]]));
    if (this.closed) return;
    if (status === 400) this.on.state("refused", text);
    else if (status === 401) this.on.state("token", text);
    else this.#retry(text, after);
  }

  #retry(text, afterMs = 0) {
    const backoff = Math.min(BACKOFF_FIRST_MS * 2 ** this.failures++, BACKOFF_MAX_MS);
    const ms = Math.max(afterMs, backoff * (0.75 + Math.random() / 4));
    this.on.state("waiting", `${text}: connecting again in ${Math.ceil(ms / 1000)} s`);
    this.timer = setTimeout(() => this.open(), ms);
  }
}

async function why(url) {
  try {
    const response = await ask(url, { signal: AbortSignal.timeout(10_000) });
    const after = Number(response.headers.get("Retry-After")) * 1000 || 0;
    if (response.status === 426) return { status: 426, text: "the connection was refused", after };
    return { status: response.status, text: sentenceOf(await response.text()), after };
  } catch {
    return { status: 0, text: "the server does not answer", after: 0 };
  }
}

/** Return the sentence of a refusal, which the v2 wire has in JSON. */
function sentenceOf(text) {
  try {
    return JSON.parse(text).message;
  } catch {
    return text.trim();
  }
}
