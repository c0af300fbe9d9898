// One session: the strip of stretches, and each breath to see, to play and to agree with or not.

import { attempt, call, clock, connect, element, eventItem, find, get, mark, say, styleName, VERDICT_MARKS } from "./shell.js";
import { showVerdict } from "./coach.js";
import { course } from "./course.js";
import { looksButton } from "./overlay.js";

const number = Number(location.pathname.split("/").at(-1));
const MOST_FIELDS = 60; // in the strip; a longer session is shown by periods
const PERIOD_MINUTES = [2, 5, 10, 15, 20, 30, 60, 120, 240, 480];
const REFRESH_MILLISECONDS = 15_000; // while the session runs
let session = null, role = "viewer", live = false, period = null, chosen = null, latest = 0;
const player = new Audio();
const NOTHING = "You find nothing abnormal in this breath";
const DISAGREE = { normal: "You find something abnormal", crackle: NOTHING, wheeze: NOTHING, both: "You do not find both" };

const complete = (stretch) => ["flagged", "nothing flagged"].includes(stretch.verdict);
const flagged = (stretch) => stretch.verdict === "flagged";
const perMinute = (rate) => (rate === null ? "–/min" : `${rate.toFixed(0)}/min`);

function periods(all) {
  // Stretches together by time, so that at most MOST_FIELDS are shown.
  const minutes = PERIOD_MINUTES.find((one) => (all.at(-1).end - all[0].start) / 60 / one <= MOST_FIELDS) ?? PERIOD_MINUTES.at(-1);
  const found = Object.groupBy(all, (stretch) => Math.floor(stretch.start / 60 / minutes));
  return Object.values(found).map((stretches) => {
    const rates = stretches.map((one) => one.rate).filter((rate) => rate !== null).sort((a, b) => a - b);
    return { stretches, start: stretches[0].start, rate: rates[rates.length >> 1] ?? null };
  });
}

function field(name, style, lines, pressed, onclick) {
  const button = element("button", { type: "button", className: style }, ...lines.map((line) => element("span", {}, line)));
  button.setAttribute("aria-label", name);
  button.setAttribute("aria-pressed", String(pressed));
  button.title = name;
  button.onclick = onclick;
  return button;
}

function stretchField(stretch) {
  const name = `Stretch from ${clock(stretch.start)}: ${stretch.verdict}, ${stretch.rate === null ? "no steady rate" : `${stretch.rate.toFixed(0)} breaths a minute`}`;
  const lines = [`${VERDICT_MARKS[stretch.verdict]} ${clock(stretch.start)}`, perMinute(stretch.rate)];
  return field(name, styleName(stretch.verdict), lines, chosen?.first === stretch.first, () => {
    chosen = chosen?.first === stretch.first ? null : stretch;
    showStrip();
  });
}

function periodField({ stretches, start, rate }) {
  const done = stretches.filter(complete), bad = done.filter(flagged).length;
  const verdict = bad ? "flagged" : done.length ? "nothing flagged" : "not enough";
  const name = `From ${clock(start)}: ${bad} of ${done.length} complete stretches flagged, ${rate === null ? "no steady rate" : `${rate.toFixed(0)} breaths a minute`}`;
  const lines = [clock(start), `${VERDICT_MARKS[verdict]} ${bad}/${done.length}`, perMinute(rate)];
  return field(name, styleName(verdict), lines, period === start, () => {
    period = period === start ? null : start;
    chosen = null;
    showStrip();
  });
}

function showStrip() {
  const all = session.stretches, done = all.filter(complete), bad = done.filter(flagged).length;
  const share = done.length ? ` (${Math.round((100 * bad) / done.length)} %)` : "";
  find("rate").textContent = `${bad} of ${done.length} complete stretches flagged${share}`;
  const parts = all.length > MOST_FIELDS ? periods(all) : null;
  const part = parts?.find(({ start }) => start === period);
  find("hint").textContent = parts ? "Each field is a part of the session, with its flagged stretches and the breaths a minute; choose one to see its stretches."
    : "Each field is a stretch of good breaths, with the breaths a minute; choose one to see its breaths.";
  const focused = document.activeElement?.title;
  find("strip").replaceChildren(...(parts ? parts.map(periodField) : all.map(stretchField)));
  find("part").hidden = !part;
  find("part").replaceChildren(...(part?.stretches.map(stretchField) ?? []));
  find("course").replaceChildren(...(all.length > 1 ? [course(parts ?? all, find("course").clientWidth)] : []));
  if (focused) [...document.querySelectorAll(".strip button")].find(({ title }) => title === focused)?.focus();
  attempt(() => showCycles(part?.stretches));
}

async function showCycles(stretches) {
  // Those of the chosen stretch, else of the chosen part, else all.
  const within = chosen ? [chosen] : stretches ?? session.stretches;
  const range = within.length ? `first=${within[0].first}&last=${within.at(-1).last}` : "first=0&last=0";
  const asked = ++latest;
  const { cycles, count } = await get(`/api/sessions/${number}/cycles?${range}${find("flaggedOnly").checked ? "&flagged=1" : ""}`);
  if (asked !== latest) return; // another stretch was chosen meanwhile
  const title = chosen ? `Cycles of the stretch from ${clock(chosen.start)}` : stretches ? `Cycles from ${clock(period)} on` : "All cycles";
  find("chosen").textContent = count > cycles.length ? `${title}, the first ${cycles.length} of ${count}` : title;
  find("cycles").replaceChildren(...cycles.map(cycleCard));
  if (!cycles.length) find("cycles").append(element("p", { className: "dim" }, "None."));
}

function cycleCard(cycle) {
  const path = `/api/sessions/${number}/cycles/${cycle.number}`;
  const words = cycle.class ? `${cycle.class}, ${cycle.probability.toFixed(2)}` : `not gradable: ${cycle.reason}`;
  const card = element("div", { className: "card cycle" },
    element("div", {}, mark(cycle), ` #${cycle.number} `, element("strong", {}, words), element("div", { className: "small dim" }, `${clock(cycle.start)}, ${(cycle.end - cycle.start).toFixed(1)} s`)));
  if (cycle.audio) {
    card.append(element("img", { src: `${path}/picture.png`, alt: `Spectrogram of cycle ${cycle.number}`, loading: "lazy" }));
    card.append(element("div", { className: "buttons" }, playButton(path, "Play", false), playButton(path, "Loop", true)));
    if (cycle.flag) card.append(looksButton(number, cycle.number));
  }
  if (cycle.class && role !== "viewer") card.append(element("div", { className: "buttons" }, ...["agree", "disagree"].map((opinion) => opinionButton(path, cycle, opinion))));
  return card;
}

function playButton(path, name, loop) {
  const button = element("button", { type: "button", className: "small-button" }, name);
  button.onclick = () => attempt(async () => {
    const address = `${path}/sound.wav`;
    const stop = loop && player.loop && !player.paused && player.src.endsWith(address);
    player.pause();
    if (stop) return;
    player.src = address;
    player.loop = loop;
    await player.play();
  });
  return button;
}

function opinionButton(path, cycle, opinion) {
  const button = element("button", { type: "button", className: "small-button" }, opinion === "agree" ? "Agree" : "Disagree");
  button.title = opinion === "agree" ? `You find the same: ${cycle.class}` : DISAGREE[cycle.class];
  button.setAttribute("aria-pressed", String(cycle.opinion === opinion));
  button.onclick = () => attempt(async () => {
    const given = cycle.opinion === opinion ? "" : opinion;
    await call(`${path}/opinion`, { opinion: given });
    cycle.opinion = given;
    showStrip();
  });
  return button;
}

function show() {
  find("title").textContent = `Session ${session.id}${session.site ? `, site ${session.site}` : ""}${session.demo ? " (DEMO)" : ""}`;
  if (session.verdict) showVerdict(find("verdict"), session.verdict);
  else find("verdict").textContent = "running, or it was stopped";
  find("reasons").textContent = session.reasons ?? "";
  find("doubt").textContent = session.not_validated ? `NOT VALIDATED: ${session.not_validated}` : "";
  find("about").textContent = `${new Date(session.started_at * 1000).toLocaleString()}, ${session.source}; subject ${session.subject || "not given"}; model ${session.bundle_name} (${session.bundle.slice(0, 12)})`;
  if (!session.with_audio) find("about").textContent += "; no sound is kept (store.audio)";
  find("events").replaceChildren(...session.timeline.map(eventItem));
  showStrip();
}

async function load() {
  session = (await attempt(() => get(`/api/sessions/${number}`))) ?? session;
  if (session) show();
  else say(`There is no session ${number}.`);
}

find("flaggedOnly").onchange = showStrip;
setInterval(() => { if (live && !document.hidden && player.paused) load(); }, REFRESH_MILLISECONDS);

connect({
  onState(state) {
    role = state.role;
    live = state.running && state.session?.session === number;
    load();
  },
});
