// The page of a trial: checks the route while it is written. Without this script its button does.
const form = document.getElementById("draft");
const outcome = document.getElementById("outcome");
const options = document.getElementById("options");
const unloaded = document.getElementById("unloaded");
const checking = document.getElementById("checking");
const PAUSE_MS = 500;
let pending = null;
let request = null;

/** Return the address of a part of the page for the fields as they are; those about the person stay out of it. */
function address(part) {
  const fields = new URLSearchParams(new FormData(form));
  for (const name of ["who", "reason", "deliver"]) fields.delete(name);
  return `${form.getAttribute("action").split("#")[0]}/${part}?${fields}`;
}

async function load(part, signal) {
  const answer = await fetch(address(part), { signal });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.text();
}

/** Wait until the focus leaves the outcome. */
function left() {
  return new Promise((resolve) => { outcome.addEventListener("focusout", () => setTimeout(resolve), { once: true }); });
}

async function check() {
  request?.abort();
  const mine = request = new AbortController();
  checking.textContent = "checking …";
  try {
    const part = await load("outcome", mine.signal);
    while (outcome.contains(document.activeElement)) await left();  // nobody loses what is in use
    if (mine.signal.aborted) return;
    outcome.innerHTML = part;
    checking.textContent = outcome.querySelector(".match-count, .fault")?.textContent ?? "";
    showCopy();
  } catch (error) {
    if (error.name !== "AbortError") checking.textContent = "The node does not answer: try again.";
  }
}

/** Load the options of the pipeline, which takes seconds the first time, and move the focus to them. */
async function loadOptions() {
  const pipeline = form.elements.pipeline.value;
  const status = options.querySelector("[role=status]");
  status.textContent = "loading, which takes some seconds …";
  try {
    const part = await load("options");
    if (form.elements.pipeline.value !== pipeline) return;
    options.innerHTML = part;
    options.querySelector("details")?.setAttribute("open", "");
    options.querySelector("summary")?.focus();
  } catch {
    status.textContent = "The node does not answer: try again.";
  }
}

/** Offer the options of another pipeline; those of the one before do not fit it. */
function offerOptions() {
  const pipeline = form.elements.pipeline;
  if (!options.querySelector("[data-load-options]")) options.replaceChildren(unloaded.content.cloneNode(true));
  const button = options.querySelector("[data-load-options]");
  button.hidden = !pipeline.value;
  button.querySelector("span").textContent = pipeline.selectedOptions[0].textContent;
  options.querySelectorAll("input[type=hidden]").forEach((each) => each.remove());
}

function showCopy() {
  const button = document.getElementById("copy");
  if (button) button.hidden = false;
}

async function copy() {
  const block = document.getElementById("block");
  block.select();
  const copied = document.getElementById("copied");
  try {
    await navigator.clipboard.writeText(block.value);
    copied.textContent = "Copied.";
  } catch {
    copied.textContent = "Selected: copy it with the keyboard.";
  }
}

form.addEventListener("input", (event) => {
  if (["who", "reason", "deliver"].includes(event.target.name) || event.target.readOnly) return;
  clearTimeout(pending);
  pending = setTimeout(check, PAUSE_MS);
});
form.addEventListener("change", (event) => {
  if (event.target.name === "pipeline") offerOptions();
});
form.addEventListener("submit", (event) => {
  if (event.submitter?.formMethod === "post") return;
  event.preventDefault();
  if (event.submitter?.matches("[data-load-options]")) loadOptions();
  else check();
});
outcome.addEventListener("click", (event) => {
  if (event.target.id === "copy") copy();
});
showCopy();
