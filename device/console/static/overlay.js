// Where the model looks in a breath: its spectrogram in grey, and over it how much depends on each place.

import { attempt, element, get, shape } from "./shell.js";

const WIDTH = 250, HEIGHT = 170, LEFT = 44, BOTTOM = 32, TOP = 6, RIGHT = 8;
const PLOT = { width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM };
const STRONGEST = 0.85; // opacity at the end of the scale

const across = (share) => LEFT + share * PLOT.width;
const down = (share) => TOP + (1 - share) * PLOT.height;

function places({ seconds, heights, falls, scale }) {
  // The same colours in every picture: full at a change of the odds by `scale` times.
  const length = seconds.at(-1), full = Math.log(scale);
  return falls.flatMap((row, low) => row.map((fall, at) => {
    const x = across(seconds[at] / length), y = down(heights[low + 1]);
    return shape("rect", {
      x, y, width: across(seconds[at + 1] / length) - x, height: down(heights[low]) - y,
      class: fall > 0 ? "for" : "against", "fill-opacity": (STRONGEST * Math.min(1, Math.abs(fall) / full)).toFixed(3),
    });
  }));
}

function axes({ seconds, ticks }) {
  const length = seconds.at(-1), step = length > 3 ? 1 : 0.5;
  const marks = ticks.map(([hertz, share]) => shape("text", { x: LEFT - 5, y: down(share) + 4, "text-anchor": "end" }, hertz >= 1000 ? `${hertz / 1000} kHz` : `${hertz} Hz`));
  for (let at = 0; at <= length - step / 4; at += step) marks.push(shape("text", { x: across(at / length), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, String(at)));
  marks.push(shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, "s of the breath"));
  return marks;
}

function drawn(found, picture) {
  const image = { href: picture, x: LEFT, y: TOP, width: PLOT.width, height: PLOT.height, preserveAspectRatio: "none" };
  const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "overlay", role: "img" },
    shape("image", image), ...(found.flat ? [] : places(found)), ...axes(found));
  drawing.setAttribute("aria-label", `Spectrogram of the breath. ${found.words}`);
  const legend = found.flat ? [] : [element("p", { className: "small dim" },
    element("i", { className: "key for" }), " speaks for an abnormal sound ", element("i", { className: "key against" }),
    ` against it; full colour where the odds change ${found.scale} times when the place is hidden. It shows what the model used, not where a finding is.`)];
  return element("div", { className: "looks" }, drawing, element("p", { className: "small", role: "status" }, found.words), ...legend);
}

const asked = new Map(); // answers by path, also awaited ones: a page draws its lists again and again

export function looksButton(session, cycle) {
  // A button, and in its place the picture once it is asked for.
  const path = `/api/sessions/${session}/cycles/${cycle}`;
  const button = element("button", { type: "button", className: "small-button" }, "Where the model looks");
  const place = element("div", {}, button);
  const show = () => attempt(async () => {
    button.disabled = true;
    try {
      place.replaceChildren(drawn(await asked.get(path), `${path}/picture.png`));
    } catch (error) {
      asked.delete(path);
      throw error;
    } finally {
      button.disabled = false;
    }
  });
  button.onclick = () => { asked.set(path, get(`${path}/evidence`)); show(); };
  if (asked.has(path)) show();
  return place;
}
