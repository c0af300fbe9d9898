// What every page has: the bar on top, the theme, DEMO across the page, and the connection to the box.

const PAGES = [["/", "Live"], ["/exam", "Exam"], ["/history", "History"], ["/settings", "Settings"]];
const RETRY_MILLISECONDS = 1000;

export const element = (tag, properties = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};

export const shape = (tag, attributes, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

export const find = (id) => document.getElementById(id);

export const clock = (seconds) => {
  const whole = Math.floor(seconds);
  const minutes = Math.floor(whole / 60) % 60, hours = Math.floor(whole / 3600);
  const end = `${String(minutes).padStart(hours ? 2 : 1, "0")}:${String(whole % 60).padStart(2, "0")}`;
  return hours ? `${hours}:${end}` : end;
};

export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export const MARKS = { normal: "✓", crackle: "C", wheeze: "W", both: "CW", none: "–" };
export const VERDICT_MARKS = { flagged: "▲", "nothing flagged": "✓", "not enough": "…", "poor quality": "?" };
export const styleName = (verdict) => (verdict ?? "").replace(" ", "-");
export const classOf = (cycle) => cycle.class ?? "none";

export const mark = (cycle) => element("span", { className: `mark ${classOf(cycle)}`, ariaHidden: "true" }, MARKS[classOf(cycle)]);

export const notValidated = (doubts) => (doubts?.length ? `NOT VALIDATED: ${doubts.join("; ")}` : "");

export const eventItem = (event) => element("li", {}, `${clock(event.seconds)} ${event.kind}${event.note ? `: ${event.note}` : ""}`);

export async function call(path, given, method = "POST") {
  // An answer that is no success becomes an Error with its one line.
  const options = { method, headers: { "content-type": "application/json" } };
  if (method === "POST") options.body = JSON.stringify(given ?? {});
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the box does not answer; is it switched on?");
  }
  if (answer.status === 401) location.assign("/login");
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.status === 204 ? null : answer.json();
}

export const get = (path) => call(path, null, "GET");

export async function attempt(action) {
  // Run it; show its error on top of the page.
  try {
    say("");
    return await action();
  } catch (error) {
    say(error.message);
    return undefined;
  }
}

export function say(text) {
  const place = find("said");
  place.textContent = text;
  place.hidden = !text;
}

export function spacePresses() {
  // A glove finds the space bar: it does what the blue button says.
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.target !== document.body) return;
    const primary = [...document.querySelectorAll("main .primary")].find((button) => button.offsetParent && !button.disabled);
    if (primary) { event.preventDefault(); primary.click(); }
  });
}

function buildBar() {
  const here = location.pathname;
  const links = PAGES.map(([path, name]) => {
    const link = element("a", { href: path }, name);
    if (path === here || (path === "/history" && here.startsWith("/sessions/"))) link.setAttribute("aria-current", "page");
    return link;
  });
  const theme = element("button", { type: "button", id: "theme", title: "Light or dark" }, "◐");
  theme.setAttribute("aria-label", "Light or dark");
  theme.onclick = () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark"
      || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    setTheme(dark ? "light" : "dark");
  };
  const bar = element("header", { className: "bar" }, element("strong", {}, "RespSAM"),
    element("nav", { ariaLabel: "Pages" }, ...links), element("span", { id: "link", className: "link" }), theme);
  const demo = element("div", { id: "demo", className: "demo-banner", hidden: true }, "DEMO ",
    element("small", {}, "simulated sound, no patient"));
  const offline = element("div", { id: "offline", className: "offline", hidden: true, role: "status" },
    "No connection to the box. Trying again…");
  const said = element("p", { id: "said", className: "card error", hidden: true, role: "alert" });
  document.body.prepend(demo, offline, bar);
  document.querySelector("main").prepend(said);
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("theme", name);
  document.dispatchEvent(new Event("theme"));
}

function showDemo(state) {
  find("demo").hidden = !state.session?.demo;
  find("link").textContent = state.session ? state.session.source : "";
}

export function connect({ onState = () => {}, onEvent = () => {}, onSound = null }) {
  // One WebSocket, opened again and again; every opening begins with the whole state.
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/live${onSound ? "" : "?sound=0"}`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => {
    if (typeof data !== "string") { onSound?.(data); return; }
    const message = JSON.parse(data);
    if (message.type === "state") {
      find("offline").hidden = true;
      showDemo(message);
      onState(message);
    } else onEvent(message);
  };
  socket.onclose = () => {
    find("offline").hidden = false;
    fetch("/api/state").then(({ status }) => { if (status === 401) location.assign("/login"); }).catch(() => {});
    setTimeout(() => connect({ onState, onEvent, onSound }), RETRY_MILLISECONDS);
  };
}

if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
if (document.querySelector("main")) buildBar();
