// The live page.

import { follow, good, ratio, showAdvice, showDots, showVerdict } from "./coach.js";
import { Scope } from "./scope.js";
import { attempt, call, clock, element, eventItem, find, mark, notValidated } from "./shell.js";

const ROWS = 8;
const scope = new Scope(find("scope"));
let state = null;

function showSummary() {
  const summary = state.summary;
  showVerdict(find("verdict"), summary?.verdict ?? "not enough", state.running && !summary?.stretches ? "so far: " : "");
  find("reasons").textContent = (summary?.reasons ?? []).join("; ");
  const doubts = summary?.not_validated ?? state.session?.not_validated ?? [];
  const safe = summary?.safe_mode ? [`SAFE MODE: ${summary.safe_mode}`] : [];
  find("doubt").textContent = [...safe, notValidated(doubts)].filter(Boolean).join(". ");
  find("rate").textContent = summary?.breaths_per_minute ? Math.round(summary.breaths_per_minute) : "–";
  const found = ratio(state.cycles);
  find("ratio").textContent = found ? `1:${found.toFixed(1)}` : "–";
  find("flagged").textContent = summary ? `${summary.flagged} of ${summary.gradable} breaths flagged` : "";
  if (summary?.stretches > 1) find("flagged").textContent += `; ${summary.stretches_flagged} of ${summary.stretches} stretches`;
  const seconds = summary?.seconds;
  find("passport").textContent = [["passport", summary?.passport], ["calibration", summary?.calibration]]
    .filter(([, value]) => value).map((pair) => pair.join(": ")).join("; ");
  find("account").textContent = seconds
    ? `${clock(seconds.heard)} heard, ${seconds.missing.toFixed(1)} s missing, ${seconds.gradable.toFixed(0)} s gradable` : "";
  showDots(find("dots"), good(state), state.model.stretch_cycles);
}

function row(cycle) {
  const words = cycle.class ?? "not gradable";
  const verdict = element("td", { className: cycle.flag ? "flagged" : "" }, mark(cycle), ` ${words}`);
  const probability = cycle.probability === null ? "" : cycle.probability.toFixed(2);
  return element("tr", {}, element("td", {}, String(cycle.number)), element("td", {}, clock(cycle.start)), verdict,
    element("td", {}, probability), element("td", { className: "wide" }, cycle.reason));
}

function showLists() {
  find("cycles").replaceChildren(...state.cycles.slice(-ROWS).reverse().map(row));
  const events = state.timeline.slice(-5).reverse();
  find("events").replaceChildren(...events.map(eventItem));
}

function showAll() {
  showAdvice(state);
  showSummary();
  showLists();
  find("listen").hidden = state.running;
  find("stop").hidden = !state.running;
  const examining = state.exam && !state.exam.finished;
  find("listen").disabled = find("stop").disabled = state.role === "viewer" || Boolean(examining);
  find("source").textContent = state.session?.source ?? "";
  find("model").textContent = `Model ${state.model.name} (${state.model.fingerprint.slice(0, 12)}), a breath is flagged from ${state.model.cycle_threshold.toFixed(2)}`;
  const stored = state.session?.session;
  find("open").hidden = !stored;
  if (stored) find("open").href = `/sessions/${stored}`;
}

follow(scope, { onState: (message) => { state = message; }, show: showAll });

find("listen").onclick = () => attempt(() => call("/api/listen", { age: state?.session?.age ?? null }));
find("stop").onclick = () => attempt(() => call("/api/stop"));
