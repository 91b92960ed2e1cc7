// The list of events, the newest first. It is bounded, and drawn a few times a second, however many events come.

import { byId, element, show } from "./dom.js";
import { clockTime } from "./format.js";
import { read, summary } from "./wires.js";

export const ROWS_MAX = 200;
const CHARS_MAX = 20_000_000; // of all messages that are kept: one may have a million
const EVERY_MS = 100; // between two drawings: faster than this nobody reads

/**
 * The list.
 *
 * While it is held, nothing moves: the user points at it, has the focus in it, or looks at an event. Messages that
 * come meanwhile wait, the newest `ROWS_MAX` of them.
 */
export class EventList {
  constructor(onOpen, onDrawn) {
    this.node = byId("events");
    this.onOpen = onOpen;
    this.onDrawn = onDrawn;
    this.messages = new Map(); // of each row: its message and what it says
    this.waiting = []; // messages without a row, the oldest first
    this.behind = 0; // messages that came since it was drawn
    this.chars = 0; // of the messages that have a row
    this.paused = false;
    this.pointed = false;
    this.drawnAt = 0;
    this.scheduled = false;
    this.#listen();
  }

  /** Whether the user holds the list without having paused it. */
  get held() {
    return this.pointed || this.node.querySelector(":focus-visible") !== null || byId("event").open;
  }

  /** Add a message that is an event. */
  add(text) {
    this.waiting.push(text);
    this.behind += 1;
    if (this.waiting.length > 2 * ROWS_MAX) this.#skip();
    this.draw();
  }

  /** Forget all rows and what waits. */
  clear() {
    this.waiting = [];
    this.behind = 0;
    this.chars = 0;
    this.messages.clear();
    this.node.replaceChildren();
    this.#changed();
  }

  /** Draw in one of the next frames. */
  draw() {
    if (this.scheduled || this.paused || this.held || !this.waiting.length) return;
    this.scheduled = true;
    requestAnimationFrame((now) => this.#frame(now));
  }

  #frame(now) {
    this.scheduled = false;
    if (now - this.drawnAt < EVERY_MS) return this.draw();
    if (this.paused || this.held) return;
    this.drawnAt = now;
    this.#skip();
    const rows = this.waiting.map((text) => this.#row(text)).reverse();
    const newest = rows.length ? this.messages.get(rows[0].firstChild).event : null;
    this.waiting = [];
    this.behind = 0;
    this.node.prepend(...rows);
    this.#trim();
    this.#changed();
    if (newest) this.onDrawn(newest);
  }

  /** Give up waiting messages that would not stay in the list. */
  #skip() {
    this.waiting.splice(0, Math.max(0, this.waiting.length - ROWS_MAX));
  }

  #trim() {
    while (this.node.childElementCount > ROWS_MAX || (this.chars > CHARS_MAX && this.node.childElementCount > 1)) {
      const button = this.node.lastElementChild.firstChild;
      this.chars -= this.messages.get(button).text.length;
      this.messages.delete(button);
      this.node.lastElementChild.remove();
    }
  }

  #changed() {
    show(byId("empty"), !this.node.childElementCount);
    if (!this.node.contains(document.activeElement)) this.#reachable(this.node.firstElementChild);
  }

  /** Make a row the one that the Tab key reaches. */
  #reachable(row) {
    this.node.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    row?.firstChild.setAttribute("tabindex", "0");
  }

  #row(text) {
    const { event } = read(text);
    const button = element(
      "button",
      { type: "button", class: "row", tabindex: "-1" },
      element("span", { class: "time" }, clockTime(event.position, { fraction: true })),
      element("span", { class: `action ${event.action}` }, event.action),
      element("span", { class: "collection" }, event.collection ?? ""),
      element("span", { class: "summary" }, summary(event)),
      element("span", { class: "did" }, event.did),
    );
    this.messages.set(button, { event, text });
    this.chars += text.length;
    return element("li", {}, button);
  }

  #listen() {
    const { node } = this;
    node.addEventListener("click", ({ target }) => this.#open(target.closest("button")));
    node.addEventListener("keydown", (event) => this.#key(event));
    node.addEventListener("pointerenter", ({ pointerType }) => this.#point(pointerType === "mouse"));
    node.addEventListener("pointerleave", () => this.#point(false));
    node.addEventListener("focusout", () => setTimeout(() => this.draw()));
  }

  #point(pointed) {
    this.pointed = pointed;
    this.draw();
  }

  #open(button) {
    if (!button) return;
    const { event, text } = this.messages.get(button);
    this.#reachable(button.parentElement);
    this.onOpen(event, text);
  }

  #key(event) {
    const row = event.target.closest("li");
    const to = {
      ArrowDown: row?.nextElementSibling,
      ArrowUp: row?.previousElementSibling,
      Home: this.node.firstElementChild,
      End: this.node.lastElementChild,
    };
    if (!(event.key in to)) return;
    event.preventDefault();
    const next = to[event.key];
    if (!next) return;
    this.#reachable(next);
    next.firstChild.focus();
  }
}
