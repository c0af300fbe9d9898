// Breaths a minute over a session, and where stretches were flagged.

import { clock, shape } from "./shell.js";

const HEIGHT = 150, LEFT = 52, RIGHT = 24, TOP = 8, BOTTOM = 26;
const STEPS = [10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400]; // seconds between marks
const MARK_WIDTH = 70;

const middle = (one) => ("end" in one ? (one.start + one.end) / 2 : (one.start + one.stretches.at(-1).end) / 2);
const bad = (one) => (one.stretches ?? [one]).some((stretch) => stretch.verdict === "flagged");

export function course(fields, width) {
  // `fields` are stretches, or parts of a session with their stretches; `width` in pixels.
  const rated = fields.filter((one) => one.rate !== null);
  const start = fields[0].start, last = fields.at(-1), end = last.end ?? last.stretches.at(-1).end;
  const top = Math.max(20, 10 * Math.ceil(Math.max(0, ...rated.map((one) => one.rate)) / 10 + 0.2));
  const x = (seconds) => LEFT + ((seconds - start) / (end - start)) * (width - LEFT - RIGHT);
  const y = (rate) => TOP + (1 - rate / top) * (HEIGHT - TOP - BOTTOM);
  const step = STEPS.find((one) => (end - start) / one <= (width - LEFT) / MARK_WIDTH) ?? STEPS.at(-1);
  const parts = [];
  for (const rate of [0, top / 2, top]) {
    parts.push(shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(rate), y2: y(rate) }), shape("text", { x: LEFT - 6, y: y(rate) + 4, "text-anchor": "end" }, rate === top ? `${rate}/min` : String(rate)));
  }
  for (let at = Math.ceil(start / step) * step; at <= end; at += step) parts.push(shape("text", { x: x(at), y: HEIGHT - 8, "text-anchor": "middle" }, clock(at)));
  let open = "M";
  const path = fields.map((one) => {
    if (one.rate === null) { open = "M"; return ""; }
    const point = `${open}${x(middle(one)).toFixed(1)} ${y(one.rate).toFixed(1)}`;
    open = "L";
    return point;
  }).join("");
  parts.push(shape("path", { d: path || "M0 0" }));
  parts.push(...rated.map((one) => shape("circle", { cx: x(middle(one)).toFixed(1), cy: y(one.rate).toFixed(1), r: bad(one) ? 4.5 : 3, class: bad(one) ? "flagged" : "" })));
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "course", role: "img" }, ...parts);
  const rates = rated.map((one) => one.rate);
  drawing.setAttribute("aria-label", rates.length ? `Breaths a minute over the session: ${Math.min(...rates).toFixed(0)} to ${Math.max(...rates).toFixed(0)}` : "Breaths a minute: never steady");
  return drawing;
}
