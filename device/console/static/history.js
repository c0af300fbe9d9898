// The history: exams and sessions with filters, the trend of a subject, another subject, removal for good.

import { attempt, call, clock, connect, element, find, get, say, styleName, VERDICT_MARKS } from "./shell.js";

const RATE = 16000, MOST_ROWS = 100;
const ORDER = ["flagged", "nothing flagged", "not enough", "poor quality"];
let known = { sessions: [], exams: [], stored: true };
let role = "viewer";

const when = (at) => new Date(at * 1000).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" });
const verdictCell = (verdict) => element("td", { className: styleName(verdict) }, verdict ? `${VERDICT_MARKS[verdict]} ${verdict}` : "running, or it was stopped");
const demo = (row) => (row.demo ? element("strong", { className: "doubt" }, "DEMO ") : "");

function wanted(row) {
  const subject = find("subject").value.trim(), from = find("from").value;
  return (!subject || row.subject === subject) && (!find("verdict").value || row.verdict === find("verdict").value)
    && (!find("site").value || row.site === find("site").value)
    && (!from || row.started_at >= new Date(from).getTime() / 1000);
}

function subjectCell(kind, row) {
  const button = element("button", { type: "button", className: "small-button", title: "Assign or correct the subject" }, row.subject || "assign");
  button.setAttribute("aria-label", `Subject of ${kind} ${row.id}: ${row.subject || "none"}; change it`);
  button.disabled = role === "viewer";
  button.onclick = () => {
    const input = element("input", { value: row.subject, maxLength: 40, ariaLabel: "Subject id" });
    const done = () => attempt(async () => {
      if (input.value.trim() !== row.subject) await call(`/api/${kind}s/${row.id}/subject`, { subject: input.value.trim() });
      await load();
    });
    input.onkeydown = (event) => { if (event.key === "Enter") input.blur(); };
    input.onblur = done;
    button.replaceWith(input);
    input.focus();
  };
  return element("td", {}, button);
}

function deleteButton(kind, row) {
  const button = element("button", { type: "button", className: "small-button" }, "Delete");
  button.setAttribute("aria-label", `Delete ${kind} ${row.id}`);
  button.hidden = role !== "admin";
  button.onclick = async () => {
    find("sureText").textContent = kind === "exam"
      ? `Delete exam ${row.id} of ${when(row.started_at)} with all its sessions and their sound? This cannot be undone.`
      : `Delete session ${row.id} of ${when(row.started_at)} and its sound? This cannot be undone.`;
    find("sure").showModal();
    find("yes").onclick = () => attempt(async () => {
      find("sure").close();
      await call(`/api/${kind}s/${row.id}`, null, "DELETE");
      await load();
    });
  };
  return button;
}

find("no").onclick = () => find("sure").close();

function show() {
  const exams = known.exams.filter((row) => !find("site").value && wanted(row)).slice(0, MOST_ROWS);
  const sessions = known.sessions.filter(wanted).slice(0, MOST_ROWS);
  find("noExams").hidden = exams.length > 0;
  find("noSessions").hidden = sessions.length > 0;
  find("exams").replaceChildren(...exams.map((row) => element("tr", {},
    element("td", {}, demo(row), when(row.started_at)), subjectCell("exam", row),
    element("td", { className: "wide" }, row.age_years === null ? "–" : `${Number(row.age_years.toFixed(2))}`), verdictCell(row.verdict),
    element("td", {}, element("a", { href: `/exams/${row.id}/report`, className: "button small-button" }, "Report"), " ", deleteButton("exam", row)))));
  find("sessions").replaceChildren(...sessions.map((row) => element("tr", {},
    element("td", {}, demo(row), when(row.started_at)), subjectCell("session", row), element("td", {}, row.site || "–"), verdictCell(row.verdict),
    element("td", { className: "wide" }, `${row.flagged} of ${row.graded} flagged`),
    element("td", { className: "wide" }, row.heard_samples === null ? "–" : clock(row.heard_samples / RATE)),
    element("td", {}, element("a", { href: `/sessions/${row.id}`, className: "button small-button" }, "Open"), " ", deleteButton("session", row)))));
  showTrend();
}

function showTrend() {
  const subject = find("subject").value.trim();
  const rows = [...known.exams].filter((row) => row.subject === subject).reverse();
  find("trendCard").hidden = !subject || !rows.length;
  if (find("trendCard").hidden) return;
  find("trendTitle").textContent = `Exams of ${subject}, oldest first`;
  const width = Math.max(320, find("trendCard").clientWidth - 32), svg = find("trend");
  svg.setAttribute("viewBox", `0 0 ${width} 120`);
  svg.setAttribute("aria-label", rows.map((row) => `${when(row.started_at)} ${row.verdict}`).join("; "));
  const draw = (tag, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };
  const lines = ORDER.map((verdict, at) => draw("text", { x: 0, y: 24 + at * 26, "font-size": 13, fill: "currentColor" }, `${VERDICT_MARKS[verdict]} ${verdict}`));
  const points = rows.map((row, at) => draw("circle", {
    cx: 150 + (width - 180) * (rows.length < 2 ? 0.5 : at / (rows.length - 1)), cy: 19 + ORDER.indexOf(row.verdict) * 26, r: 8,
    fill: row.verdict === "flagged" ? "var(--abnormal)" : row.verdict === "nothing flagged" ? "var(--normal)" : "var(--doubt)",
  }));
  svg.replaceChildren(...lines, ...points);
}

async function load() {
  known = (await attempt(() => get("/api/history"))) ?? known;
  if (!known.stored) say("Nothing is stored (store.enabled is off): exams are here until the command ends.");
  const fill = (place, values) => place.replaceChildren(...values.map((value) => element("option", { value }, value)));
  fill(find("subjects"), [...new Set([...known.exams, ...known.sessions].map((row) => row.subject).filter(Boolean))].sort());
  const chosen = find("site").value;
  fill(find("site"), ["", ...new Set(known.sessions.map((row) => row.site).filter(Boolean))]);
  find("site").firstChild.textContent = "any";
  find("site").value = chosen;
  show();
}

find("filters").oninput = show;
find("filters").onsubmit = (event) => event.preventDefault();
let last = "";
connect({
  onState(state) {
    role = state.role;
    const now = `${state.running} ${state.exam?.id} ${state.exam?.finished}`;
    if (now !== last) load();
    last = now;
  },
});
