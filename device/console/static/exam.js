// The exam: age first, then site by site on the chest map, then the result.

import { advice, follow, showAdvice, showDots, showVerdict } from "./coach.js";
import { looksButton } from "./overlay.js";
import { Scope } from "./scope.js";
import { attempt, call, element, find, get, notValidated, spacePresses, styleName, VERDICT_MARKS } from "./shell.js";

const COUNT_MILLISECONDS = 250;
const scope = new Scope(find("scope"));
let state = null;
let fresh = false; // the form is wanted although an exam is there
let advanceAt = 0;

// the form

const age = () => {
  const value = Number(find("age").value.replace(",", ".")) / Number(find("unit").value);
  return find("age").value.trim() === "" || !Number.isFinite(value) ? null : value;
};

async function showDoubts() {
  const given = age();
  if (given === null) { find("doubts").textContent = ""; return; }
  const doubts = await attempt(() => get(`/api/doubts?age=${given}`));
  find("doubts").textContent = notValidated(doubts);
}

find("age").oninput = find("unit").onchange = showDoubts;

find("begin").onsubmit = (event) => {
  event.preventDefault();
  if (age() === null) { find("age").focus(); return; }
  const sites = state.plans[new FormData(find("begin")).get("plan")].map((site) => site.code);
  const given = { age: age(), subject: find("subject").value.trim(), sites, advance: find("advance").checked };
  attempt(async () => {
    await call("/api/exam", given);
    fresh = false;
  });
};

// the map

let torso = "";

async function buildMap() {
  torso ||= await (await fetch("/static/torso.svg")).text();
  for (const face of ["front", "back"]) {
    if (!find(face).querySelector("svg")) {
      find(face).prepend(new DOMParser().parseFromString(torso, "image/svg+xml").documentElement);
    }
  }
}

const planOf = (exam) => Object.values(state.plans).flat().filter((site) => exam.required.includes(site.code));

function showMap(exam) {
  const plan = planOf(exam);
  for (const face of ["front", "back"]) {
    const sites = plan.filter((site) => site.face === face);
    find(face).hidden = !sites.length;
    for (const site of sites) find(face).append(siteButton(site, exam));
    for (const old of find(face).querySelectorAll("button")) if (!exam.required.includes(old.dataset.code)) old.remove();
  }
}

function siteButton(site, exam) {
  const button = find(`site-${site.code}`) ?? element("button", { id: `site-${site.code}`, type: "button" });
  const known = exam.sites[site.code], listening = exam.listening === site.code;
  button.dataset.code = site.code;
  button.style.left = `${site.x}%`;
  button.style.top = `${site.y}%`;
  button.className = listening ? "listening" : known.verdict ? styleName(known.verdict) : exam.next === site.code ? "next" : "";
  const sign = listening || !known.verdict ? site.code : VERDICT_MARKS[known.verdict];
  button.replaceChildren(sign, element("small", {}, `${known.good}/${known.needed}`));
  const what = listening ? "listening" : known.verdict ?? "not recorded";
  button.setAttribute("aria-label", `${site.words}: ${what}, ${known.good} of ${known.needed} good breaths`);
  button.title = button.getAttribute("aria-label");
  button.disabled = state.role === "viewer" || exam.finished || Boolean(exam.listening);
  button.onclick = () => listenAt(site.code);
  return button;
}

const listenAt = (code) => attempt(() => call("/api/exam/site", { site: code }));

// what is running

function showNow(exam) {
  const next = exam.sites[exam.next], here = exam.sites[exam.listening];
  find("site").textContent = here?.words ?? (next ? `Next: ${next.words}` : "All sites are done");
  find("start").hidden = Boolean(here) || !next;
  find("start").textContent = next ? `Listen at ${next.words}` : "";
  find("stop").hidden = !here;
  find("finish").className = next || here ? "" : "primary";
  find("finish").textContent = next || here ? "Finish the exam" : "Show the result";
  for (const name of ["start", "stop", "finish"]) find(name).disabled = state.role === "viewer";
  showDots(find("dots"), here?.good ?? 0, (here ?? next)?.needed ?? 0);
  find("scope").hidden = !here;
  if (here) showAdvice(state);
  else showPause(exam, next);
}

function showPause(exam, next) {
  const left = Math.ceil((advanceAt - Date.now()) / 1000);
  const [line, why] = next
    ? [`Put the stethoscope on: ${next.words}`, left > 0 ? `It begins in ${left} s` : "Press the button, or the space bar, when it is in place."]
    : ["Every site has an answer", "Show the result; a site can be listened to again before."];
  find("coach").textContent = state.error ? advice(state)[0] : line;
  find("why").textContent = state.error || why;
}

setInterval(() => { if (state?.exam && advanceAt > Date.now() - 1000) showNow(state.exam); }, COUNT_MILLISECONDS);

// left against right

const cell = (site) => {
  if (!site?.verdict) return element("td", { className: "dim" }, site ? "not recorded" : "–");
  const probability = site.summary?.probability;
  const words = [site.verdict, ...(probability === null || probability === undefined ? [] : [probability.toFixed(2)])].join(", ");
  return element("td", {}, element("span", { className: styleName(site.verdict) }, `${VERDICT_MARKS[site.verdict]} ${words}`),
    element("div", { className: "small dim" }, site.reasons.join("; ")));
};

function showPairs(exam) {
  const rows = [];
  for (const site of planOf(exam)) {
    if (site.side === "right") continue;
    const name = site.words.replace(/^left /, "");
    const right = site.opposite ? exam.sites[site.opposite] : undefined;
    const cells = site.side ? [cell(exam.sites[site.code]), cell(right)] : [cell(exam.sites[site.code]), element("td", { className: "dim" }, "(middle)")];
    rows.push(element("tr", {}, element("th", { scope: "row" }, name), ...cells));
  }
  find("pairs").replaceChildren(...rows);
}

// the result

function showResult(exam) {
  showVerdict(find("verdict"), exam.verdict);
  find("doubt").textContent = notValidated(exam.not_validated);
  find("report").hidden = !exam.id;
  if (exam.id) find("report").href = `/exams/${exam.id}/report`;
}

function showEvidence(exam) {
  find("found").hidden = !exam.evidence.length;
  find("foundTitle").textContent = exam.evidence.some((one) => one.cycle.flag) ? "Evidence: the strongest cycles" : "The strongest cycles; none is flagged";
  find("evidence").replaceChildren(...exam.evidence.map(({ words, cycle, picture, session }) => {
    const what = `${words}, ${cycle.start.toFixed(1)}–${cycle.end.toFixed(1)} s: ${cycle.class}, probability ${cycle.probability.toFixed(2)}`;
    const looks = exam.finished && session && cycle.flag ? [looksButton(session, cycle.number)] : [];
    return element("figure", {}, element("img", { src: picture, alt: `Spectrogram: ${what}` }), element("figcaption", {}, what), ...looks);
  }));
}

function showAll() {
  const exam = fresh && state.exam?.finished ? null : state.exam;
  const finished = Boolean(exam?.finished);
  find("begin").hidden = Boolean(exam);
  find("running").hidden = !exam || finished;
  find("result").hidden = !finished;
  find("sides").hidden = find("found").hidden = !exam;
  if (!exam) {
    if (!document.activeElement || document.activeElement === document.body) find("age").focus();
    return;
  }
  const age = exam.age_years === null ? "age not given" : `${Number(exam.age_years.toFixed(2))} years`;
  find("patient").textContent = `Subject ${exam.subject || "without an id"}, ${age}. ${notValidated(exam.not_validated)}`;
  showMap(exam);
  showPairs(exam);
  if (finished) showResult(exam);
  else showNow(exam);
  if (finished || exam.evidence.length) showEvidence(exam);
}

await buildMap();
follow(scope, {
  onState(message) {
    state = message;
    advanceAt = state.advance_seconds ? Date.now() + 1000 * state.advance_seconds : 0;
  },
  show: showAll,
});

find("start").onclick = () => listenAt(state.exam.next);
find("stop").onclick = () => attempt(() => call("/api/stop"));
find("finish").onclick = () => attempt(() => call("/api/exam/finish"));
find("again").onclick = () => { fresh = true; find("begin").reset(); find("doubts").textContent = ""; showAll(); };
spacePresses();
