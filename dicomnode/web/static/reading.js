// One slice and one window for all pictures of the reading page. Without this script the form sends both.
const form = document.getElementById("view");
const slice = form.elements.at;
const PAUSE_MS = 40;
const PAGE_SLICES = 10;
let pending = null;
document.documentElement.classList.add("with-script");

/** Load all pictures at the slice and window of the controls; each waits for its own last answer only. */
function showPictures() {
  const { level, width } = form.elements;
  const query = `at=${slice.value}&level=${level.value}&width=${width.value}&size=512`;
  for (const image of form.querySelectorAll("img[data-picture]")) {
    image.src = `${image.dataset.picture}?${query}`;
    image.alt = image.alt.replace(/slice \d+$/, `slice ${Number(slice.value) + 1}`);
  }
}

function showNumber() {
  const viewer = form.querySelector("a[data-viewer]");
  if (viewer) viewer.href = viewer.getAttribute("href").replace(/(#layout=.*,)\d+$/, `$1${slice.value}`);
  form.querySelector("output").textContent = `${Number(slice.value) + 1} of ${form.dataset.slices}`;
  for (const button of document.querySelectorAll("button[data-jump]")) {
    button.closest("tr")?.classList.toggle("here", button.value === slice.value);
  }
}

/** Tell the style how tall the tallest picture is for its width, so that it fits into the window. */
function fitPictures() {
  const ratios = [...form.querySelectorAll("img[data-picture]")].map((image) => image.naturalHeight / image.naturalWidth);
  const known = ratios.filter(Number.isFinite);
  if (known.length) document.getElementById("panes").style.setProperty("--aspect", Math.max(...known));
}

function update() {
  showNumber();
  clearTimeout(pending);
  pending = setTimeout(showPictures, PAUSE_MS);
}

function moveTo(index) {
  slice.value = index;
  update();
}

if (slice) {
  document.getElementById("panes").addEventListener("load", fitPictures, true);
  fitPictures();
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => { event.preventDefault(); update(); });
  slice.addEventListener("keydown", (event) => {
    const step = { PageUp: PAGE_SLICES, PageDown: -PAGE_SLICES }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    moveTo(Number(slice.value) + step);
  });
  document.getElementById("panes").addEventListener("wheel", (event) => {
    if (event.ctrlKey) return;
    event.preventDefault();
    moveTo(Number(slice.value) + Math.sign(event.deltaY));
  }, { passive: false });
  form.querySelector("[data-reset]").addEventListener("click", (event) => {
    event.preventDefault();
    form.elements.level.value = 0;
    form.elements.width.value = 100;
    update();
  });
  for (const jumps of document.querySelectorAll(".jumps")) {
    jumps.addEventListener("submit", (event) => {
      event.preventDefault();
      moveTo(event.submitter.value);
      const top = document.getElementById("panes").getBoundingClientRect().top;
      if (top < 0 || top > innerHeight / 2) document.getElementById("sentence").scrollIntoView();
    });
  }
  showNumber();
}
