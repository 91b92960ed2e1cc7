// A line of the last hour in SVG, with a readout of what the pointer is over.

import { element, setText, svg } from "./dom.js";
import { clockTime, duration } from "./format.js";

const [WIDTH, HEIGHT] = [360, 72]; // of the drawing, which is stretched to its place
const PAD = 3;
const STEPS_MIN = 30; // as wide as so many values, while there are fewer

const along = (run) => run.map((point) => point.join(" ")).join("L");
const below = (run) => `M${run[0][0]} ${HEIGHT}L${along(run)}L${run.at(-1)[0]} ${HEIGHT}Z`;

/** A tile: the figure of now, and its line. `format` makes a text of a value. */
export class Tile {
  constructor(title, format, { color, hint }) {
    this.format = format;
    this.title = title;
    this.values = [];
    this.figure = element("p", { class: "figure" }, "–");
    this.detail = element("p", { class: "muted detail" }, "");
    this.readout = element("span", { class: "muted" }, "");
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line", "vector-effect": "non-scaling-stroke" });
    const across = { y1: 0, y2: HEIGHT, "vector-effect": "non-scaling-stroke" };
    this.mark = svg("line", { class: "mark", visibility: "hidden", ...across });
    this.drawing = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title },
      svg("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT, "vector-effect": "non-scaling-stroke" }),
      this.area,
      this.line,
      this.mark,
    );
    const head = element("div", { class: "tile-head" }, element("h3", { title: hint }, title), this.readout);
    this.begin = element("span");
    const axis = element("p", { class: "axis muted", "aria-hidden": "true" }, this.begin, element("span", {}, "now"));
    this.node = element("section", { class: `tile ${color}` }, head, this.figure, this.detail, this.drawing, axis);
    this.drawing.addEventListener("pointermove", (event) => this.#point(event));
    this.drawing.addEventListener("pointerleave", () => this.#leave());
  }

  /** Show the figure of now, and a line below it. */
  set(figure, detail) {
    setText(this.figure, figure);
    setText(this.detail, detail);
  }

  /** Draw values, the oldest first; null is a gap. `stepS` is the time between two, `endUs` is when the last ended. */
  draw(values, stepS, endUs) {
    Object.assign(this, { values, stepS, endUs, steps: Math.max(values.length, STEPS_MIN) });
    const found = values.filter((each) => each !== null);
    this.top = Math.max(...found, 0) || 1;
    setText(this.begin, `${duration(this.steps * stepS)} ago`);
    const runs = this.#runs();
    this.line.setAttribute("d", runs.map((run) => `M${along(run)}`).join(""));
    this.area.setAttribute("d", runs.map(below).join(""));
    const [low, high] = [Math.min(...found), Math.max(...found)].map(this.format);
    const summary = found.length ? `lowest ${low}, highest ${high}, last ${this.format(found.at(-1))}` : "no values yet";
    this.drawing.setAttribute("aria-label", `${this.title} in the last hour: ${summary}`);
    this.summary = found.length ? `peak ${high}` : "";
    if (!this.pointed) setText(this.readout, this.summary);
  }

  /** Return the values as points, in runs without a gap. A lone value is a short line. */
  #runs() {
    const runs = [[]];
    this.values.forEach((value, place) => {
      if (value === null) runs.push([]);
      else runs.at(-1).push([this.#x(place), this.#y(value)]);
    });
    const lone = (run) => (run.length === 1 ? [[run[0][0] - 1, run[0][1]], run[0]] : run);
    return runs.filter((run) => run.length).map(lone);
  }

  #x(place) {
    return Number((WIDTH - ((this.values.length - 1 - place) * WIDTH) / (this.steps - 1)).toFixed(2));
  }

  #y(value) {
    return Number((HEIGHT - (value / this.top) * (HEIGHT - PAD)).toFixed(2));
  }

  #point(event) {
    const box = this.drawing.getBoundingClientRect();
    const fromEnd = Math.round((1 - (event.clientX - box.left) / box.width) * (this.steps - 1));
    const place = this.values.length - 1 - fromEnd;
    const value = this.values[place];
    if (value === undefined || value === null) return this.#leave();
    this.pointed = true;
    this.mark.setAttribute("x1", this.#x(place));
    this.mark.setAttribute("x2", this.#x(place));
    this.mark.setAttribute("visibility", "visible");
    const at = clockTime(this.endUs - fromEnd * this.stepS * 1e6);
    setText(this.readout, `${at} · ${this.format(value)}`);
  }

  #leave() {
    this.pointed = false;
    this.mark.setAttribute("visibility", "hidden");
    setText(this.readout, this.summary ?? "");
  }
}
