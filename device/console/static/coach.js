// What to do now, in one line, and what is known so far: from the state and what happened since.

import { clock, connect, counted, element, find, styleName, VERDICT_MARKS } from "./shell.js";

const LOUDEST = -3, QUIETEST = -80; // dBFS

const PURPOSES = { calibrate: "The stethoscope is being calibrated", record: "The stethoscope is being measured" };

export function advice(state, forSettings = false) {
  // [the line, why]
  if (state.running && !forSettings && state.session?.purpose in PURPOSES) return [PURPOSES[state.session.purpose], "See Settings."];
  if (state.error) return ["Listening has stopped", state.error];
  if (!state.session) return ["Starting…", ""];
  if (!state.running) return ["Not listening", state.timeline.at(-1)?.note ?? ""];
  if (state.lost !== null) return [`No sound since ${clock(state.lost)}`, "Check the cable and the plug; it goes on by itself."];
  const latest = state.cycles.at(-1);
  if (latest?.reason) {
    const [what, todo] = latest.reason.split(": ");
    return [capital(todo ?? what), todo ? capital(what) : ""];
  }
  const summary = state.summary;
  if (!summary) return ["Listening for breaths…", "Press the diaphragm flat, ask for quiet and deep breaths."];
  if (summary.stretches) return ["Complete", "Listen at the next site, or go on for another six breaths."];
  return [`${counted(summary.breaths_wanted, "more good breath")}`, "Hold still, this sounds good."];
}

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function ratio(cycles) {
  // Expiration over inspiration, the median of the latest breaths; null without enough of them.
  const ratios = cycles.filter((cycle) => cycle.phase && cycle.kind === "breath").slice(-9)
    .map((cycle) => (cycle.end - cycle.phase) / (cycle.phase - cycle.start)).sort((a, b) => a - b);
  return ratios.length < 3 ? null : ratios[Math.floor(ratios.length / 2)];
}

function apply(state, event) {
  // Bring a state up to date with one event.
  if (event.type === "cycle") {
    state.summary = event.summary;
    state.cycles = [...state.cycles, event].slice(-40);
  } else if (event.type === "timeline") {
    state.timeline = [...state.timeline, event].slice(-20);
    if (event.kind === "lost") state.lost ??= event.seconds;
  } else if (event.type === "exam") state.exam = event.exam;
}

export function follow(scope, { onState, show }) {
  // Draw sound and cycles on the scope as they come; `onState` gets each whole state, `show` draws it after every change.
  let state = null;
  connect({
    onState(message) {
      const again = state && state.session?.began === message.session?.began;
      state = message;
      if (!again) scope.reset(state.picture);
      state.cycles.forEach((cycle) => scope.add(cycle));
      onState(state);
      show();
    },
    onEvent(event) {
      if (!state) return;
      if (event.type === "found" || event.type === "cycle") scope.add(event);
      if (event.type === "found") return;
      apply(state, event);
      show();
    },
    onSound(buffer) {
      const level = scope.sound(buffer);
      if (level === null) return;
      if (state && state.lost !== null) { state.lost = null; show(); }
      showLevel(level);
    },
  });
}

export function showVerdict(place, verdict, prefix = "") {
  place.className = `verdict ${styleName(verdict)}`;
  place.replaceChildren(element("span", { ariaHidden: "true" }, VERDICT_MARKS[verdict] ?? ""), `${prefix}${verdict}`);
}

export function showAdvice(state) {
  const [line, why] = advice(state);
  if (find("coach").textContent !== line) find("coach").textContent = line;
  if (find("why").textContent !== why) find("why").textContent = why;
}

export function showDots(place, good, needed) {
  place.replaceChildren(...Array.from({ length: needed }, (_, at) => element("i", { className: at < good ? "full" : "" })));
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${good} of ${needed} good breaths`);
}

export function showLevel(level) {
  const meter = find("level"), share = Math.min(1, Math.max(0, (level - QUIETEST) / -QUIETEST));
  meter.firstElementChild.style.width = `${100 * share}%`;
  meter.classList.toggle("loud", level > LOUDEST);
  meter.setAttribute("aria-valuenow", level.toFixed(0));
  find("dbfs").textContent = `${level.toFixed(0)} dBFS`;
}

export const good = (state) => {
  const needed = state.model.stretch_cycles;
  return state.summary ? (state.summary.stretches ? needed : needed - state.summary.breaths_wanted) : 0;
};
