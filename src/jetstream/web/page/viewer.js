// The live viewer: a form, a subscription, and the list of its events.

import { byId, copy, element, setText, show } from "./dom.js";
import { duration, number } from "./format.js";
import { EventList } from "./list.js";
import { EventDialog } from "./record.js";
import { SNIPPETS, Subscription } from "./request.js";
import { Stream } from "./stream.js";
import { ask } from "./token.js";
import { isEvent, WIRES } from "./wires.js";

const PRESETS = {
  posts: "app.bsky.feed.post",
  likes: "app.bsky.feed.like",
  reposts: "app.bsky.feed.repost",
  follows: "app.bsky.graph.follow",
  blocks: "app.bsky.graph.block",
  profiles: "app.bsky.actor.profile",
};
const NOT_STARTED = "Press Start, and events appear here as they come.";
const WAITING = "Waiting for events that match.";
const FIGURES_EVERY_MS = 500;
const RATE_OVER_MS = 3000;

/** The viewer. `nowUs` returns the time by the server's clock. `onRefused` gets why a token is needed. */
export class Viewer {
  constructor(nowUs, onRefused) {
    this.nowUs = nowUs;
    this.onRefused = onRefused;
    this.form = byId("request");
    this.dialog = new EventDialog(() => this.list.draw());
    this.list = new EventList(
      (event, text) => this.dialog.show(event, text),
      (event) => this.#drawn(event),
    );
    this.stream = null;
    this.count = 0; // events since the start
    this.counts = []; // [time, count] of the last seconds
    this.explained = false; // whether it was asked what the filter selects
    this.selects = ""; // what was answered
    this.needsToken = false; // whether it was refused for want of a token
    this.delayMs = null; // from the storing of an event until it was drawn, by the clock of the user
    this.snippet = "websocat";
    this.#wire();
    this.#presets();
    this.#tabs();
    this.#changed();
    setInterval(() => this.#figures(), FIGURES_EVERY_MS);
  }

  /** Offer collections to choose from. */
  suggest(names) {
    byId("collection-names").replaceChildren(...names.map((name) => element("option", { value: name })));
  }

  #wire() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    this.form.addEventListener("input", () => this.#changed());
    byId("stop").addEventListener("click", () => this.#stop("Stopped"));
    byId("pause").addEventListener("click", () => this.#pause(!this.list.paused));
    byId("clear").addEventListener("click", () => this.#clear());
    byId("copy-snippet").addEventListener("click", () => copy(byId("snippet").textContent, byId("copied")));
  }

  // What is asked for

  /** Return what the form asks for. */
  asked() {
    const data = new FormData(this.form);
    const words = (name) => data.get(name).split(/[\s,]+/).filter(Boolean);
    const time = data.get("time");
    const start = data.get("start");
    return {
      collections: words("collections"),
      dids: words("dids"),
      text: data.get("text").trim(),
      kinds: data.getAll("kinds"),
      wire: data.get("wire"),
      start: start !== "time" ? start : time ? new Date(time).toISOString() : null, // null: no time is chosen yet
    };
  }

  #subscription() {
    const base = new URL(".", location.href).href;
    return new Subscription(this.asked(), { base, served: document.body.dataset.wire, nowUs: this.nowUs });
  }

  #changed() {
    const { wire, start, time } = this.form.elements;
    show(byId("time-part"), start.value === "time");
    if (start.value === "time" && !time.value) time.value = localTime(this.nowUs() / 1000 - 600_000);
    const sync = this.form.querySelector("[value=sync]");
    sync.disabled = !WIRES[wire.value].kinds.includes("sync");
    const chosen = this.asked().collections;
    for (const chip of byId("presets").children) chip.setAttribute("aria-pressed", chosen.includes(chip.title));
    setText(byId("snippet"), SNIPPETS[this.snippet](this.#subscription()));
  }

  #presets() {
    for (const [name, collection] of Object.entries(PRESETS)) {
      byId("presets").append(element("button", { type: "button", class: "chip", title: collection }, name));
    }
    byId("presets").addEventListener("click", ({ target }) => {
      if (!target.title) return;
      const field = byId("collections-field");
      const chosen = this.asked().collections;
      const others = chosen.filter((each) => each !== target.title);
      field.value = (others.length < chosen.length ? others : [...chosen, target.title]).join(", ");
      this.#changed();
    });
  }

  #tabs() {
    const tabs = Object.keys(SNIPPETS).map(tab);
    const choose = (chosen, focus) => {
      this.snippet = chosen.textContent;
      for (const each of tabs) {
        each.setAttribute("aria-selected", each === chosen);
        each.tabIndex = each === chosen ? 0 : -1;
      }
      byId("snippet-panel").setAttribute("aria-labelledby", chosen.id);
      if (focus) chosen.focus();
      this.#changed();
    };
    byId("tabs").append(...tabs);
    byId("tabs").addEventListener("click", ({ target }) => tabs.includes(target) && choose(target, false));
    byId("tabs").addEventListener("keydown", ({ key, target }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (step) choose(tabs.at((tabs.indexOf(target) + step) % tabs.length), true);
    });
    choose(tabs[0], false);
  }

  // The subscription

  /** Try again with the token that was entered, if it was refused without. */
  useToken() {
    if (this.needsToken) this.#start();
  }

  #start() {
    this.stream?.close();
    Object.assign(this, { explained: false, selects: "", needsToken: false });
    this.#clear();
    this.#pause(false);
    const subscription = this.#subscription();
    if (!subscription.asked.kinds.length) return this.#refused("kinds: choose at least one");
    if (subscription.asked.start === null) return this.#refused("time: choose a date and a time");
    this.stream = new Stream(subscription, {
      message: (text) => isEvent(text) && this.#event(text),
      state: (word, text) => this.#state(word, text, subscription),
    });
    this.stream.open();
    this.#buttons();
  }

  #state(word, text, subscription) {
    if (word === "refused") return this.#refused(text);
    if (word === "token") {
      this.#refused(text);
      this.needsToken = true;
      return this.onRefused(text);
    }
    show(byId("refusal"), false);
    const words = { connecting: "Connecting", open: "Connected", waiting: text && text[0].toUpperCase() + text.slice(1) };
    setText(byId("stream-state"), words[word]);
    byId("stream-state").dataset.state = word;
    if (word === "open" && !this.explained) this.#explain(subscription);
  }

  #refused(text) {
    this.#stop("Refused");
    setText(byId("refusal"), text);
    show(byId("refusal"), true);
  }

  /** Say how much the filter selects, once for each start. */
  async #explain(subscription) {
    this.explained = true;
    const response = await ask(subscription.httpUrl("explain")).catch(() => null);
    if (!response?.ok || this.stream?.subscription !== subscription) return; // asked for too often, or gone
    const { events, matched } = (await response.json()).last_minute;
    this.selects = `of the last minute's ${number(events)} events it selects ${number(matched)}`;
  }

  #stop(text) {
    this.stream?.close();
    this.stream = null;
    this.#pause(false);
    setText(byId("stream-state"), text);
    byId("stream-state").dataset.state = "stopped";
    this.#buttons();
  }

  #pause(paused) {
    this.list.paused = paused;
    setText(byId("pause"), paused ? "Resume" : "Pause");
    this.#figures();
    this.list.draw();
  }

  #clear() {
    show(byId("refusal"), false);
    Object.assign(this, { count: 0, counts: [], delayMs: null });
    this.list.clear();
    this.#figures();
  }

  #buttons() {
    setText(byId("start-button"), this.stream ? "Restart" : "Start");
    byId("stop").disabled = byId("pause").disabled = !this.stream;
    byId("clear").disabled = false;
    setText(byId("empty"), this.stream ? WAITING : NOT_STARTED);
  }

  // Figures

  #event(text) {
    this.count += 1;
    this.list.add(text);
  }

  /** Note the delay of an event that was just drawn. */
  #drawn({ position }) {
    this.delayMs = Date.now() - position / 1000;
    byId("events").dataset.delayMs = Math.round(this.delayMs);
  }

  #figures() {
    const now = performance.now();
    this.counts.push([now, this.count]);
    while (now - this.counts[0][0] > RATE_OVER_MS) this.counts.shift();
    setText(byId("stream-figures"), this.count || this.selects ? this.#sentences().filter(Boolean).join(" · ") : "");
  }

  #sentences() {
    const [[began, before], [ended, after]] = [this.counts[0], this.counts.at(-1)];
    const rate = ended > began ? ((after - before) * 1000) / (ended - began) : 0;
    const { paused, held, behind } = this.list;
    const still = paused ? "paused" : held ? "standing still while you are in the list" : "";
    return [
      `${number(this.count)} events`,
      this.stream && `${number(rate)}/s`,
      still ? `${still}, ${number(behind)} more came` : this.stream && this.#delay(),
      this.selects,
    ];
  }

  #delay() {
    if (this.delayMs === null || this.delayMs < 0) return "";
    return this.delayMs < 60_000 ? `delay ${duration(this.delayMs / 1000)}` : `${duration(this.delayMs / 1000)} behind`;
  }
}

function tab(name) {
  return element("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "snippet-panel" }, name);
}

/** Return unix milliseconds as a field for a local time takes them. */
function localTime(ms) {
  const date = new Date(ms);
  return new Date(ms - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}
