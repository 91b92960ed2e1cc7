// Figures as texts. What is not known, null or undefined, is a dash.

export const UNKNOWN = "–";
const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const two = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Return a number: with more digits the smaller it is. */
export function number(value) {
  if (!known(value)) return UNKNOWN;
  return (Math.abs(value) >= 100 || Number.isInteger(value) ? whole : Math.abs(value) >= 10 ? one : two).format(value);
}

/** Return a number of bytes. */
export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  let [size, unit] = [value, 0];
  while (size >= 1000 && unit < UNITS.length - 1) [size, unit] = [size / 1000, unit + 1];
  return `${number(unit ? Number(size.toPrecision(3)) : Math.round(size))} ${UNITS[unit]}`;
}

/** Return a duration of seconds in its two largest units. */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const s = Math.max(0, seconds);
  if (s < 1) return `${whole.format(s * 1000)} ms`;
  if (s < 60) return `${s < 10 ? one.format(s) : whole.format(s)} s`;
  if (s < 3600) return twoUnits(s, 60, "min", 1, "s");
  if (s < 86400) return twoUnits(s, 3600, "h", 60, "min");
  return twoUnits(s, 86400, "d", 3600, "h");
}

function twoUnits(seconds, large, largeName, small, smallName) {
  const units = Math.round(seconds / small);
  const [first, second] = [Math.floor((units * small) / large), units % (large / small)];
  return second ? `${whole.format(first)} ${largeName} ${second} ${smallName}` : `${whole.format(first)} ${largeName}`;
}

/** Return a share as percent. */
export function percent(value) {
  return known(value) ? `${whole.format(value * 100)} %` : UNKNOWN;
}

/** Return the time of day of unix microseconds, by the clock of the user. */
export function clockTime(us, { seconds = true, fraction = false } = {}) {
  const date = new Date(us / 1000);
  const parts = [date.getHours(), date.getMinutes(), ...(seconds ? [date.getSeconds()] : [])];
  const text = parts.map((each) => String(each).padStart(2, "0")).join(":");
  return fraction ? `${text}.${String(date.getMilliseconds()).padStart(3, "0")}` : text;
}

/** Return unix microseconds as RFC 3339 in UTC, with all six digits. */
export function utc(us) {
  return new Date(us / 1000).toISOString().replace(/\.\d+Z$/, `.${String(us % 1e6).padStart(6, "0")}Z`);
}
