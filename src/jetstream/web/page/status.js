// `/status.json`, every few seconds: less and less often while the server does not answer, and not at all while
// nobody looks at the page.

import { ask } from "./token.js";

const EVERY_MS = 3000;
const BACKOFF_FIRST_MS = 1000;
const BACKOFF_MAX_MS = 30_000;
const TIMEOUT_MS = 10_000;

/**
 * Asks for the status until the page is left.
 *
 * `onStatus` gets it, `onSilence` a text and when it asks again. `onRefused` gets why a token is needed: then it
 * asks again when `now` is called.
 */
export class Poller {
  constructor({ onStatus, onSilence, onRefused }) {
    this.onStatus = onStatus;
    this.onSilence = onSilence;
    this.onRefused = onRefused;
    this.failures = 0;
    this.timer = undefined;
    this.asking = false;
    document.addEventListener("visibilitychange", () => document.hidden || this.now());
    addEventListener("online", () => this.now());
  }

  /** Ask now. */
  async now() {
    if (this.asking) return;
    clearTimeout(this.timer);
    this.asking = true;
    try {
      this.onStatus(await statusOf("status.json"));
      this.failures = 0;
      this.#later(EVERY_MS);
    } catch (error) {
      if (error instanceof Refusal && error.status === 401) return this.onRefused(error.text);
      const backoff = Math.min(BACKOFF_FIRST_MS * 2 ** this.failures++, BACKOFF_MAX_MS);
      this.onSilence(error instanceof Refusal ? `${error.status}: ${error.text}` : "", backoff);
      this.#later(backoff);
    } finally {
      this.asking = false;
    }
  }

  #later(ms) {
    this.timer = setTimeout(() => document.hidden || this.now(), ms);
  }
}

class Refusal extends Error {
  constructor(status, text) {
    super(text);
    Object.assign(this, { status, text });
  }
}

async function statusOf(path) {
  const response = await ask(path, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (!response.ok) throw new Refusal(response.status, (await response.text()).slice(0, 300));
  return response.json();
}
