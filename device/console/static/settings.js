// The settings: the stethoscope, the check of the box, and the guided calibration and self-test.

import { advice, capital, follow, good, showDots } from "./coach.js";
import { Scope } from "./scope.js";
import { attempt, call, counted, element, find, get, spacePresses } from "./shell.js";

const SITES = ["left posterior", "right posterior", "left anterior", "right anterior"];
const COUNT_MILLISECONDS = 250;
const STATES = { ok: ["✓", "ok"], warning: ["!", "look at this"], FAIL: ["✗", "does not work"] };
const scope = new Scope(find("scope"));
let state = null;
let endsAt = 0;

const act = (path, given) => attempt(() => call(`/api/settings/${path}`, given));
const percent = (share) => `${Math.round(100 * share)} %`;
const shareWords = ({ count, of, low, high }) =>
  `${count} of ${of} (${of ? percent(count / of) : "–"}; 95 % interval ${percent(low)} to ${percent(high)})`;
const day = (made) => made.slice(0, 10);
const setText = (id, text) => { if (find(id).textContent !== text) find(id).textContent = text; };

function fill(place, ...children) {
  // Only what differs is replaced: a button keeps the focus, and a screen reader is not interrupted.
  const made = element("div", {}, ...children);
  if (place.dataset.shown === made.innerHTML) return;
  place.dataset.shown = made.innerHTML;
  place.replaceChildren(...made.childNodes);
}

const row = (name, ...cells) => element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell)));
const facts = (pairs) => pairs.filter(([, value]) => value).map(([name, value]) => row(name, value));

function ask(text, yes, action) {
  find("sureText").textContent = text;
  find("yes").textContent = yes;
  find("yes").onclick = () => { find("sure").close(); action(); };
  find("sure").showModal();
}

// the stethoscope

const measuredRows = (found) => facts([
  ["measured", day(found.made_at)],
  ["input", found.device],
  ["noise", `${found.noise_dbfs} dBFS`],
  ["on a chest", `${found.chest_dbfs} dBFS, breath up to ${found.rolloff_hz} Hz`],
  ["clipping", found.clipping_dbfs === null ? "not reached" : `at ${found.clipping_dbfs} dBFS`],
]);

function showStethoscope({ stethoscope }) {
  const { input, problem, passport } = stethoscope;
  setText("stethoscope", passport?.name ?? (input || (input === null ? "No microphone" : "Waiting for the microphone")));
  setText("passport", problem || (passport ? `Passport ${passport.key}: ${passport.connection}` : input ? "No passport yet: the self-test makes one." : ""));
  const drifts = state.timeline.filter((event) => event.kind === "drift").map((event) => event.note);
  fill(find("drift"), ...drifts.map((words) => element("li", {}, words)));
  fill(find("measured"), ...(passport?.measured ? measuredRows(passport.measured) : []));
  fill(find("calibrations"), ...(passport?.calibrations ?? []).map((one) => calibrationCard(one, passport)).reverse());
  for (const button of find("calibrations").querySelectorAll("button")) {
    button.disabled = state.role !== "admin" || working();
    button.onclick = () => ask(`Remove calibration ${passport.undo}? The next sessions are under the one before, or under the model's own threshold.`,
      "Remove it", () => act("undo", { name: passport.undo }));
  }
}

function calibrationCard(one, passport) {
  const force = one.name === passport.in_force ? "in force" : one.this_bundle ? "not in force" : "for another model";
  const card = element("div", { className: "calibration" }, element("strong", {}, `Calibration of ${day(one.made_at)}, ${force}`),
    element("div", { className: "small" }, `${counted(one.people, "healthy person").replace("persons", "people")}, ${one.sites} sites: flagged ${one.sites_flagged_before} before, ${one.sites_flagged_after} after; a site's threshold ${one.bundle_threshold.toFixed(3)} → ${one.threshold.toFixed(3)}`),
    element("div", { className: "small dim" }, one.name));
  if (one.name === passport.undo) card.append(element("button", { type: "button", className: "small-button" }, "Undo"));
  return card;
}

// the check of the box

function showCheck({ check, checking }) {
  find("check").disabled = checking || state.role === "viewer";
  setText("check", checking ? "Checking…" : "Check now");
  if (!check) return;
  setText("checkProblem", check.error);
  const wrong = check.findings.filter((finding) => finding.state !== "ok").length;
  const skipped = check.microphone ? "" : " The microphone was not checked, because a session listens to it; stop it, then check again.";
  setText("checked", `${new Date(check.at * 1000).toLocaleTimeString()}: ${check.error ? "the check did not end" : checking ? "checking" : wrong ? `${wrong} of ${check.findings.length} checks want you to look` : `all ${check.findings.length} checks are right`}.${skipped}`);
  const order = ["FAIL", "warning", "ok"];
  const sorted = [...check.findings].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state));
  fill(find("findings"), ...sorted.map(findingItem));
}

function findingItem({ check, state: found, found: words }) {
  const [mark, name] = STATES[found];
  const [what, ...todo] = words.split("; ");
  return element("li", { className: found }, element("span", { className: "sign", ariaHidden: "true" }, mark),
    element("div", {}, element("strong", {}, `${capital(check)}: ${name}`), element("div", {}, what),
      ...todo.map((line) => element("div", { className: found === "ok" ? "dim small" : "todo" }, capital(line)))));
}

// the guided work

const working = () => Boolean(state.guide.calibration || state.guide.self_test);
const secondsLeft = () => Math.max(0, Math.ceil((endsAt - Date.now()) / 1000));
const latestIs = (purpose) => state.running && state.session?.purpose === purpose;

function calibrationAdvice(calibration, recording) {
  // [title, line, why]
  if (calibration.proposal) return ["Calibration: what it would change", "Save this calibration?", "Nothing is written yet."];
  if (!calibration.next) return ["Calibration", "All sites are recorded", "Look at what it would change, before it changes."];
  const [person, site] = calibration.next;
  const at = `person ${calibration.persons.indexOf(person) + 1} of ${calibration.persons.length}, site ${calibration.sites.indexOf(site) + 1} of ${calibration.sites.length}`;
  const title = `Calibration: ${at}`;
  if (!recording) return [title, `${capital(person)}: stethoscope on ${site}`, "Ask for deep breaths through the open mouth. Then press the button, or the space bar."];
  if (!latestIs("calibrate")) return [title, "The microphone opens…", ""];
  const [line, why] = state.summary?.stretches ? ["Enough good breaths", "Hold still until it ends by itself."] : advice(state, true);
  return [`${title}, ${site}`, line, `${secondsLeft()} s left. ${why}`];
}

function selfTestAdvice(test, recording) {
  if (test.result) return ["Self-test: the passport", "Save this passport?", `Nothing is written yet; it goes to ${test.file}.`];
  const at = test.facts.length, step = test.steps[at];
  const title = `Self-test of ${test.name}: step ${at + 1} of ${test.steps.length}`;
  const why = recording ? (latestIs("record") ? `Recording: ${secondsLeft()} s left.` : "The microphone opens…")
    : `It takes ${Math.round(step.seconds)} s. Press the button, or the space bar, when you are ready.`;
  return [title, capital(step.what), why];
}

function showWork(guide) {
  const { calibration, self_test: test, recording } = guide;
  find("work").hidden = !working();
  find("forms").hidden = working();
  if (!working()) return;
  const [title, line, why] = calibration ? calibrationAdvice(calibration, recording) : selfTestAdvice(test, recording);
  setText("title", title);
  setText("problem", capital(guide.error));
  setText("coach", line);
  setText("why", why);
  const made = Boolean(calibration?.proposal || test?.result), more = calibration ? Boolean(calibration.next) : !test.result;
  find("record").hidden = recording || made || !more;
  setText("record", calibration ? "Listen" : "Record");
  find("stop").hidden = !recording;
  const some = calibration && Object.keys(calibration.breaths).length > 0;
  find("propose").hidden = recording || made || !some;
  find("propose").className = more ? "" : "primary";
  find("save").hidden = !made;
  find("leave").hidden = recording || !calibration;
  find("discard").hidden = recording;
  for (const name of ["record", "stop", "propose", "save", "leave", "discard"]) find(name).disabled = state.role !== "admin";
  find("sound").hidden = !recording;
  find("dots").hidden = !(recording && calibration);
  if (recording && calibration) showDots(find("dots"), latestIs("calibrate") ? good(state) : 0, state.model.stretch_cycles);
  showChange(calibration?.proposal, test?.result);
  showSteps(test);
  showPeople(calibration, recording);
}

function showChange(proposal, result) {
  find("change").hidden = !(proposal || result);
  if (proposal) fill(find("change"), ...proposalLines(proposal));
  if (result) fill(find("change"), ...resultLines(result));
}

function proposalLines(proposal) {
  const head = element("thead", {}, element("tr", {}, ...["of healthy people", "now", "calibrated"].map((name) => element("th", { scope: "col" }, name))));
  const rows = element("tbody", {},
    row("sites flagged", shareWords(proposal.before), shareWords(proposal.after)),
    row("breaths flagged", shareWords(proposal.breaths), "not changed"),
    row("a site's threshold", proposal.bundle_threshold.toFixed(3), proposal.threshold.toFixed(3)));
  return [
    element("table", {}, head, rows),
    element("p", {}, `From ${proposal.people} healthy people at ${proposal.sites} sites; each person is judged at the threshold that the others chose.`),
    element("p", {}, `It may not go below the floor: on held-out patients the model kept a sensitivity of ${proposal.sensitivity_floor.toFixed(2)} at the largest rise that is allowed.`),
  ];
}

function resultLines({ passport, drift }) {
  const again = drift.length ? drift.map((words) => element("li", {}, `Changed: ${words}`)) : [];
  return [element("table", { className: "facts" }, ...facts([["name", passport.name], ["recognised by", passport.match.usb.join(", ") || passport.match.names.join(", ")]]), ...measuredRows(passport.measured)),
    element("ul", { className: "doubt" }, ...again)];
}

function showSteps(test) {
  find("steps").hidden = !test;
  if (!test) return;
  fill(find("steps"), ...test.steps.map((step, at) => element("li", { className: at < test.facts.length ? "done" : at === test.facts.length ? "here" : "" },
    capital(step.what), element("div", { className: "small dim" }, test.facts[at] ?? `${Math.round(step.seconds)} s`))));
}

function showPeople(calibration, recording) {
  find("people").hidden = !calibration;
  if (!calibration) return;
  const [head, body] = find("people").children;
  fill(head, element("tr", {}, ...["good breaths", ...calibration.sites, ""].map((name) => element("th", { scope: "col" }, name))));
  fill(body, ...calibration.persons.map((person) => personRow(calibration, person)));
  for (const button of body.querySelectorAll("button")) {
    button.disabled = recording || state.role !== "admin";
    button.onclick = () => ask(`Forget ${button.value} and record this person, or another one, again?`, "Forget", () => act("forget", { person: button.value }));
  }
}

function personRow(calibration, person) {
  const found = calibration.breaths[person] ?? {}, [nextPerson, nextSite] = calibration.next ?? [];
  const cells = calibration.sites.map((site) => element("td", { className: person === nextPerson && site === nextSite ? "here" : "" },
    site in found ? `✓ ${found[site]}` : person === nextPerson && site === nextSite ? "now" : "–"));
  const again = element("button", { type: "button", className: "small-button", value: person }, "Again");
  again.setAttribute("aria-label", `Record ${person} again`);
  return element("tr", {}, element("th", { scope: "row" }, person), ...cells, element("td", {}, Object.keys(found).length ? again : ""));
}

function showForms({ stethoscope }) {
  const name = find("name"), known = stethoscope.passport?.measured_as;
  name.readOnly = Boolean(known);
  if (known) name.value = known;
  const blocked = state.role !== "admin" || stethoscope.input === null;
  for (const control of document.querySelectorAll("#forms button")) control.disabled = blocked;
  if (!stethoscope.passport) find("calibration").querySelector("button").disabled = true;
  find("admin").hidden = state.role === "admin";
}

function showAll() {
  const { guide } = state;
  find("note").hidden = !guide.note;
  setText("note", capital(guide.note));
  showStethoscope(guide);
  showCheck(guide);
  showWork(guide);
  if (!working()) showForms(guide);
}

follow(scope, {
  onState(message) {
    state = message;
    endsAt = state.guide.seconds_left === null ? 0 : Date.now() + 1000 * state.guide.seconds_left;
  },
  show: showAll,
});
setInterval(() => { if (state?.guide.recording) showWork(state.guide); }, COUNT_MILLISECONDS);

fill(find("sites"), ...SITES.map((site) => element("label", { className: "check" }, element("input", { type: "checkbox", value: site }), ` ${site}`)));
for (const box of find("sites").querySelectorAll("input")) box.checked = true;

find("selfTest").onsubmit = (event) => {
  event.preventDefault();
  act("self-test", { name: find("name").value.trim(), seconds: Number(find("testSeconds").value), replace: find("name").readOnly });
};
find("calibration").onsubmit = (event) => {
  event.preventDefault();
  const sites = [...find("sites").querySelectorAll("input:checked")].map((box) => box.value);
  act("calibration", { people: Number(find("count").value), sites, seconds: Number(find("siteSeconds").value), restart: find("restart").checked });
};
for (const name of ["record", "propose", "leave"]) find(name).onclick = () => act(name);
find("save").onclick = () => ask("Save it? It changes the verdicts of later patients.", "Save", () => act("save"));
find("discard").onclick = () => ask("Discard everything so far? Nothing is written.", "Discard", () => act("discard"));
find("stop").onclick = () => attempt(() => call("/api/stop"));
find("check").onclick = () => act("check");
find("no").onclick = () => find("sure").close();
spacePresses();
attempt(() => get("/api/settings"));
