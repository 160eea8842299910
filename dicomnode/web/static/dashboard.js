// What makes pages live. Without it they work as well: they are only as new as the last time they were asked for.
const SLOWEST_MS = 3000;
const POLL_MS = 20000;
const topics = new Set((document.body.dataset.topics ?? "").split(" ").filter(Boolean));
let seq = Number(document.body.dataset.seq);
let source = null;
let waiting = null;
let asked = 0;

/** The page as the server would make it now: by the address, or by the form that it came from. */
async function fresh() {
  const form = document.querySelector("form.filter");
  const patient = form?.elements.patient?.defaultValue;
  const state = form?.querySelector(".primary")?.value ?? "";
  const page = new URLSearchParams(location.search);
  page.delete("done");
  const query = page.size ? `?${page}` : "";
  const options = { headers: { Accept: "text/html" }, cache: "no-store" };
  if (patient) {
    const fields = new URLSearchParams({ patient, state });
    for (const name of ["description", "first", "last"]) fields.set(name, form.elements[name].defaultValue);
    Object.assign(options, { method: "POST", body: fields });
  }
  const answer = await fetch(patient ? "/" : location.pathname + query, options);
  if (!answer.ok || answer.redirected) throw new Error(`status ${answer.status}`);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

/** As text, without how long ago things were: that alone is no news. */
function likeness(element) {
  const copy = element.cloneNode(true);
  for (const time of copy.querySelectorAll("time[data-ago]")) time.textContent = "";
  for (const given of copy.querySelectorAll("details[open]")) given.removeAttribute("open");
  for (const made of copy.querySelectorAll("[data-made]")) made.remove();
  for (const image of copy.querySelectorAll("figure img, figure a")) {
    image.removeAttribute("src");
    image.removeAttribute("href");
  }
  for (const slices of copy.querySelectorAll(".slices")) slices.remove();
  return copy.outerHTML;
}

/** Whether a person is at work in it. */
function inUse(element) {
  if (element.contains(document.activeElement) && document.activeElement.matches("input, textarea, button")) return true;
  return [...element.querySelectorAll("input[name=reason]")].some((field) => field.value !== field.defaultValue);
}

function exchange(old, now) {
  const times = now.querySelectorAll("time[data-ago]");
  if (likeness(old) === likeness(now)) {
    old.querySelectorAll("time[data-ago]").forEach((time, at) => { time.textContent = times[at].textContent; });
    return;
  }
  if (inUse(old)) return;
  const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  old.replaceWith(now);
  for (const element of now.querySelectorAll(".figures")) slices(element);
  if (focused) now.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

/** Rows by their keys; what has none is exchanged whole. */
function renew(old, now) {
  const rows = [...now.children];
  if (!rows.length || rows.some((row) => !row.dataset.key) || [...old.children].some((row) => !row.dataset.key)) {
    if (likeness(old) !== likeness(now) && !inUse(old)) old.replaceWith(now);
    return;
  }
  const there = new Map([...old.children].map((row) => [row.dataset.key, row]));
  let place = old.firstElementChild;
  for (const row of rows) {
    const known = there.get(row.dataset.key);
    there.delete(row.dataset.key);
    if (!known) {
      old.insertBefore(row, place);
    } else if (known === place) {
      place = place.nextElementSibling;
      exchange(known, row);
    } else {
      if (!inUse(known)) old.insertBefore(known, place);
      exchange(known, row);
    }
  }
  for (const gone of there.values()) if (!inUse(gone)) gone.remove();
}

function tell() {
  const counts = [...document.querySelectorAll("#pages .count")].map((count) => count.closest("a").textContent.trim());
  const words = counts.join(", ").replace(/\s+/g, " ");
  const said = document.getElementById("said");
  if (said.dataset.last !== undefined && said.dataset.last !== words) said.textContent = words || "Nothing waits for you";
  said.dataset.last = words;
}

async function refresh() {
  waiting = null;
  asked = Date.now();
  try {
    const page = await fresh();
    for (const now of page.querySelectorAll("[data-live]")) {
      const old = document.getElementById(now.id);
      if (old) renew(old, now);
    }
    seq = Number(page.body.dataset.seq);
    tell();
  } catch {
    show(false);
  }
}

function soon() {
  waiting ??= setTimeout(refresh, Math.max(200, asked + SLOWEST_MS - Date.now()));
}

function show(on) {
  const live = document.getElementById("live");
  live.hidden = false;
  live.textContent = on ? "live" : "not live: reload for news";
  live.classList.toggle("off", !on);
}

function progress(jobs) {
  for (const [id, [percent, , words]] of Object.entries(jobs)) {
    const bar = document.querySelectorAll(`progress[data-job="${id}"]`);
    if (!bar.length && topics.has("jobs") && document.querySelector("#jobs, #studies")) continue;
    bar.forEach((each) => { each.value = percent; each.textContent = `${percent} %`; });
    document.querySelectorAll(`[data-job-words="${id}"]`).forEach((each) => { each.textContent = words; });
  }
}

function listen() {
  if (source || document.hidden || !topics.size) return;
  source = new EventSource("/events");
  source.addEventListener("hello", (event) => {
    show(true);
    if (JSON.parse(event.data).seq > seq) soon();
  });
  source.addEventListener("changed", (event) => {
    if (JSON.parse(event.data).topics.some((topic) => topics.has(topic))) soon();
  });
  source.addEventListener("progress", (event) => progress(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    show(false);
    if (source?.readyState === EventSource.CLOSED) {
      rest();
      setTimeout(() => { refresh(); listen(); }, POLL_MS);
    }
  });
}

/** A browser opens six connections to a server: pages that nobody sees leave theirs to others. */
function rest() {
  source?.close();
  source = null;
}

/** Source, result and uncertainty at one slice. */
async function slices(figures) {
  const job = figures.dataset.slices;
  const line = figures.nextElementSibling;
  if (!job || !line?.classList.contains("slices")) return;
  const answer = await fetch(`/jobs/${job}/depth`);
  const count = answer.ok ? (await answer.json()).slices : 0;
  if (count < 2) return;
  const input = line.querySelector("input");
  const output = line.querySelector("output");
  input.max = count - 1;
  input.value = Math.floor(count / 2);
  const say = () => { output.textContent = `${Number(input.value) + 1} of ${count}`; };
  let turn = null;
  input.addEventListener("input", () => {
    say();
    clearTimeout(turn);
    turn = setTimeout(() => {
      for (const image of figures.querySelectorAll("img")) {
        const where = image.getAttribute("src").split("?")[0];
        image.src = `${where}?at=${input.value}`;
        image.closest("a").href = `${where}?at=${input.value}&size=1024`;
      }
    }, 60);
  });
  say();
  line.hidden = false;
}

document.querySelectorAll(".figures").forEach(slices);
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
document.addEventListener("visibilitychange", () => (document.hidden ? rest() : listen()));
addEventListener("pagehide", rest);
tell();
listen();
