// Live updates of the pages. Pages work without this script, too: they then show the state at their last load.
// Written by hand rather than with htmx and its SSE extension: rows are exchanged by key, and fields in use stay.
const BACKGROUND = { "Dicomnode-Background": "1" }; // of requests that are nobody's work: a session without use ends
const LEAST_INTERVAL_MS = 3000;
const POLL_MS = 20000;
const refreshMs = 1000 * Number(document.body.dataset.refreshS); // of pages whose content is no row of the database
const topics = new Set((document.body.dataset.topics ?? "").split(" ").filter(Boolean));
let seq = Number(document.body.dataset.seq);
let source = null;
let pendingRefresh = null;
let lastRefreshMs = 0;

/** Load the current page anew: by its address, or by the form that it came from. */
async function loadPage() {
  const form = document.querySelector("form.filter");
  const patient = form?.elements.patient?.defaultValue;
  const state = form?.querySelector(".primary")?.value ?? "";
  const page = new URLSearchParams(location.search);
  page.delete("done");
  const query = page.size ? `?${page}` : "";
  const options = { headers: { Accept: "text/html", ...BACKGROUND }, cache: "no-store" };
  if (patient) {
    const fields = new URLSearchParams({ patient, state });
    for (const name of ["description", "first", "last"]) fields.set(name, form.elements[name].defaultValue);
    Object.assign(options, { method: "POST", body: fields });
  }
  const answer = await fetch(patient ? "/" : location.pathname + query, options);
  if (!answer.ok || answer.redirected) throw new Error(`status ${answer.status}`);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

/** Return an element's HTML for comparison, without ages of events, which change all the time. */
function comparableHtml(element) {
  const copy = element.cloneNode(true);
  for (const time of copy.querySelectorAll("time[data-ago]")) time.textContent = "";
  for (const details of copy.querySelectorAll("details[open]")) details.removeAttribute("open");
  for (const image of copy.querySelectorAll("figure img, figure a")) {
    image.removeAttribute("src");
    image.removeAttribute("href");
  }
  for (const slices of copy.querySelectorAll(".slices")) slices.remove();
  return copy.outerHTML;
}

/** Return whether the user is working in an element. */
function inUse(element) {
  if (element.contains(document.activeElement) && document.activeElement.matches("input, textarea, button")) return true;
  return [...element.querySelectorAll("input[name=reason]")].some((field) => field.value !== field.defaultValue);
}

function updateRow(old, now) {
  const times = now.querySelectorAll("time[data-ago]");
  if (comparableHtml(old) === comparableHtml(now)) {
    old.querySelectorAll("time[data-ago]").forEach((time, at) => { time.textContent = times[at].textContent; });
    return;
  }
  if (inUse(old)) return;
  const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  old.replaceWith(now);
  for (const element of now.querySelectorAll(".figures")) setUpSlider(element);
  if (focused) now.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

/** Update a list row by row, by the rows' keys; replace an element without keys as a whole. */
function updateElement(old, now) {
  const rows = [...now.children];
  if (!rows.length || rows.some((row) => !row.dataset.key) || [...old.children].some((row) => !row.dataset.key)) {
    if (comparableHtml(old) !== comparableHtml(now) && !inUse(old)) old.replaceWith(now);
    return;
  }
  const remaining = new Map([...old.children].map((row) => [row.dataset.key, row]));
  let position = old.firstElementChild;
  for (const row of rows) {
    const current = remaining.get(row.dataset.key);
    remaining.delete(row.dataset.key);
    if (!current) {
      old.insertBefore(row, position);
    } else if (current === position) {
      position = position.nextElementSibling;
      updateRow(current, row);
    } else {
      if (!inUse(current)) old.insertBefore(current, position);
      updateRow(current, row);
    }
  }
  for (const gone of remaining.values()) if (!inUse(gone)) gone.remove();
}

/** Announce changed counts of waiting decisions and failures to screen readers. */
function announceCounts() {
  const counts = [...document.querySelectorAll("#pages .count")].map((count) => count.closest("a").textContent.trim());
  const text = counts.join(", ").replace(/\s+/g, " ");
  const status = document.getElementById("announcement");
  if (status.dataset.last !== undefined && status.dataset.last !== text) status.textContent = text || "No decisions or failures";
  status.dataset.last = text;
}

async function refresh() {
  pendingRefresh = null;
  lastRefreshMs = Date.now();
  try {
    const page = await loadPage();
    for (const now of page.querySelectorAll("[data-live]")) {
      const old = document.getElementById(now.id);
      if (old) updateElement(old, now);
    }
    seq = Number(page.body.dataset.seq);
    announceCounts();
    if (!source) document.getElementById("live").hidden = true;
  } catch {
    showConnection(false);
  }
}

function scheduleRefresh() {
  pendingRefresh ??= setTimeout(refresh, Math.max(200, lastRefreshMs + LEAST_INTERVAL_MS - Date.now()));
}

function showConnection(isLive) {
  const live = document.getElementById("live");
  live.hidden = false;
  live.textContent = isLive ? "live" : "not live: reload to update";
  live.classList.toggle("off", !isLive);
}

function updateProgress(jobs) {
  for (const [id, [percent, , text]] of Object.entries(jobs)) {
    const bar = document.querySelectorAll(`progress[data-job="${id}"]`);
    if (!bar.length && topics.has("jobs") && document.querySelector("#jobs, #studies")) continue;
    bar.forEach((each) => { each.value = percent; each.textContent = `${percent} %`; });
    document.querySelectorAll(`[data-job-words="${id}"]`).forEach((each) => { each.textContent = text; });
  }
}

function connect() {
  if (source || document.hidden || !topics.size) return;
  source = new EventSource("/events");
  source.addEventListener("hello", (event) => {
    showConnection(true);
    if (JSON.parse(event.data).seq > seq) scheduleRefresh();
  });
  source.addEventListener("changed", (event) => {
    if (JSON.parse(event.data).topics.some((topic) => topics.has(topic))) scheduleRefresh();
  });
  source.addEventListener("progress", (event) => updateProgress(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    showConnection(false);
    if (source?.readyState === EventSource.CLOSED) {
      disconnect();
      setTimeout(() => { refresh(); connect(); }, POLL_MS);
    }
  });
}

/** Close the event stream: a browser opens six connections to a server, and hidden pages leave theirs to others. */
function disconnect() {
  source?.close();
  source = null;
}

/** Set up the slider that shows all figures of a job at the same slice. */
async function setUpSlider(figures) {
  const job = figures.dataset.slices;
  const line = figures.nextElementSibling;
  if (!job || !line?.classList.contains("slices")) return;
  const answer = await fetch(`/jobs/${job}/depth`, { headers: BACKGROUND });
  const { slices: count, first } = answer.ok ? await answer.json() : { slices: 0 };
  if (count < 2) return;
  const input = line.querySelector("input");
  const output = line.querySelector("output");
  input.max = count - 1;
  input.value = first;
  const showNumber = () => { output.textContent = `${Number(input.value) + 1} of ${count}`; };
  let pending = null;
  input.addEventListener("input", () => {
    showNumber();
    clearTimeout(pending);
    pending = setTimeout(() => {
      for (const image of figures.querySelectorAll("img")) {
        const where = image.getAttribute("src").split("?")[0];
        image.src = `${where}?at=${input.value}`;
        image.closest("a").href = `${where}?at=${input.value}&size=1024`;
      }
    }, 60);
  });
  showNumber();
  line.hidden = false;
}

document.querySelectorAll(".figures").forEach(setUpSlider);
for (const field of document.querySelectorAll("input[data-kept]")) {
  field.value = sessionStorage.getItem(field.name) ?? "";
  field.addEventListener("change", () => sessionStorage.setItem(field.name, field.value));
}
document.addEventListener("submit", (event) => {
  const button = event.submitter;
  setTimeout(() => { if (button && !button.name) button.disabled = true; });
});
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
addEventListener("pagehide", disconnect);
announceCounts();
connect();
if (refreshMs) setInterval(() => { if (!document.hidden) refresh(); }, refreshMs);
