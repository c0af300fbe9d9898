// One session: the strip of stretches, and each breath to see, to play and to agree with or not.

import { attempt, call, clock, connect, element, eventItem, find, get, mark, say, styleName, VERDICT_MARKS } from "./shell.js";
import { showVerdict } from "./coach.js";

const number = Number(location.pathname.split("/").at(-1));
const MOST_SHOWN = 60;
let session = null, role = "viewer", chosen = null;
const player = new Audio();

const complete = (stretch) => ["flagged", "nothing flagged"].includes(stretch.verdict);

function showStrip() {
  const all = session.stretches;
  find("rate").textContent = `${all.filter((one) => one.verdict === "flagged").length} of ${all.filter(complete).length} complete stretches flagged`;
  find("strip").replaceChildren(...all.map((stretch, at) => {
    const button = element("button", { type: "button", className: styleName(stretch.verdict) }, `${VERDICT_MARKS[stretch.verdict]} ${clock(stretch.start)}`);
    button.setAttribute("aria-label", `Stretch ${at + 1} from ${clock(stretch.start)}: ${stretch.verdict}`);
    button.title = button.getAttribute("aria-label");
    button.setAttribute("aria-pressed", String(chosen === at));
    button.onclick = () => { chosen = chosen === at ? null : at; showStrip(); };
    return button;
  }));
  const numbers = chosen === null ? null : new Set(all[chosen].cycles);
  showCycles(session.cycles.filter((cycle) => !numbers || numbers.has(cycle.number)));
}

function showCycles(cycles) {
  const some = cycles.filter((cycle) => !find("flaggedOnly").checked || cycle.flag);
  find("chosen").textContent = chosen === null ? "All cycles" : `Cycles of stretch ${chosen + 1}`;
  if (some.length > MOST_SHOWN) find("chosen").textContent += `, the first ${MOST_SHOWN} of ${some.length}`;
  find("cycles").replaceChildren(...some.slice(0, MOST_SHOWN).map(cycleCard));
  if (!some.length) find("cycles").append(element("p", { className: "dim" }, "None."));
}

function cycleCard(cycle) {
  const path = `/api/sessions/${number}/cycles/${cycle.number}`;
  const words = cycle.class ? `${cycle.class}, ${cycle.probability.toFixed(2)}` : `not gradable: ${cycle.reason}`;
  const card = element("div", { className: "card cycle" },
    element("div", {}, mark(cycle), ` #${cycle.number} `, element("strong", {}, words), element("div", { className: "small dim" }, `${clock(cycle.start)}, ${(cycle.end - cycle.start).toFixed(1)} s`)));
  if (cycle.audio) {
    card.append(element("img", { src: `${path}/picture.png`, alt: `Spectrogram of cycle ${cycle.number}`, loading: "lazy" }));
    card.append(element("div", { className: "buttons" }, playButton(path, "Play", false), playButton(path, "Loop", true)));
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
  if (!session.cycles.some((cycle) => cycle.audio)) find("about").textContent += "; no sound is kept (store.audio)";
  find("events").replaceChildren(...session.timeline.map(eventItem));
  showStrip();
}

find("flaggedOnly").onchange = showStrip;

connect({
  async onState(state) {
    role = state.role;
    session = (await attempt(() => get(`/api/sessions/${number}`))) ?? session;
    if (session) show();
    else say(`There is no session ${number}.`);
  },
});
