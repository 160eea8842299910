// Files on the page /try: DICOM goes to STOW-RS in batches, NIfTI one by one with its JSON file.
const form = document.getElementById("drop");
const input = document.getElementById("files");
const modality = document.getElementById("modality");
const button = form.querySelector("button");
const bar = document.getElementById("upload");
const result = document.getElementById("upload-result");
const BOUNDARY = "dicomnode-files";
const BATCH_BYTES = 200e6;
const BATCH_FILES = 500;
const REASONS = new Map([
  [0xC000, "no DICOM file, or a damaged one"], [0xA700, "the disk of the node is nearly full"],
  [0xC111, "other content under a UID that is here already: it is in quarantine"], [0xA900, "contradicts itself"],
  [0x0122, "a kind of object that the node does not store"], [0xC122, "a transfer syntax that the node does not know"],
]);
const isNifti = (file) => /\.nii(\.gz)?$/.test(file.name);

/** Split files into batches for one request each. */
function* batches(files) {
  let batch = [];
  let bytes = 0;
  for (const file of files) {
    if (batch.length && (bytes + file.size > BATCH_BYTES || batch.length >= BATCH_FILES)) {
      yield batch;
      [batch, bytes] = [[], 0];
    }
    batch.push(file);
    bytes += file.size;
  }
  if (batch.length) yield batch;
}

/** Store DICOM files; add the UIDs of their studies and the reasons of refusals to the outcome. */
async function storeDicom(files, outcome) {
  const parts = files.flatMap((file) => [`--${BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n`, file, "\r\n"]);
  const answer = await fetch("/dicom-web/studies", {
    method: "POST", body: new Blob([...parts, `--${BOUNDARY}--\r\n`]),
    headers: { "Content-Type": `multipart/related; type="application/dicom"; boundary=${BOUNDARY}`, Accept: "application/dicom+json" },
  });
  if (![200, 202, 409, 503].includes(answer.status) || !answer.headers.get("Content-Type")?.includes("json")) throw new Error(await answer.text());
  const found = await answer.json();
  for (const item of found["00081199"]?.Value ?? []) {
    outcome.stored += 1;
    const uid = item["00081190"]?.Value?.[0]?.match(/\/studies\/([0-9.]+)\//)?.[1];
    if (uid) outcome.studies.add(uid);
  }
  for (const item of [...found["00081198"]?.Value ?? [], ...found["0008119A"]?.Value ?? []]) {
    const reason = REASONS.get(item["00081197"].Value[0]) ?? `status ${item["00081197"].Value[0].toString(16)}`;
    outcome.refused.set(reason, (outcome.refused.get(reason) ?? 0) + 1);
  }
}

async function storeNifti(file, sidecar, outcome) {
  const name = file.name.replace(/[^\w.+-]/g, "_").replace(/^[^A-Za-z0-9]+/, "");
  const facts = { name, modality: modality.value, sidecar: sidecar ? JSON.parse(await sidecar.text()) : null };
  const headers = { "Nifti-Facts": encodeURIComponent(JSON.stringify(facts)), "Content-Type": "application/octet-stream" };
  const answer = await fetch(form.dataset.nifti, { method: "POST", body: file, headers });
  if (!answer.ok) {
    outcome.refused.set((await answer.text()).trim(), 1);
    return;
  }
  for (const uid of (await answer.json()).studies) outcome.studies.add(uid);
  outcome.stored += 1;
}

async function store(files) {
  const outcome = { stored: 0, studies: new Set(), refused: new Map() };
  const nifti = files.filter(isNifti);
  const sidecars = new Map(files.filter((file) => file.name.endsWith(".json")).map((file) => [file.name, file]));
  const dicom = files.filter((file) => !isNifti(file) && !file.name.endsWith(".json"));
  let count = 0;
  for (const batch of batches(dicom)) {
    await storeDicom(batch, outcome);
    count += batch.length;
    bar.value = count / files.length;
  }
  for (const file of nifti) {
    await storeNifti(file, sidecars.get(file.name.replace(/\.nii(\.gz)?$/, ".json")), outcome);
    count += 1;
    bar.value = count / files.length;
  }
  return outcome;
}

/** Show what was stored and what was refused; text only, never markup of an answer. */
function show({ stored, studies, refused }) {
  const line = (text) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    result.append(paragraph);
    return paragraph;
  };
  line(`${stored} ${stored === 1 ? "file is" : "files are"} stored.`);
  for (const [reason, count] of refused) line(`${count} not stored: ${reason}`).className = "fault";
  for (const uid of studies) {
    const link = document.createElement("a");
    [link.href, link.textContent, link.className] = [`/try/${uid}`, "Try a pipeline on this study", "button primary"];
    line("").append(link, ` ${uid}`);
  }
}

async function submit() {
  const files = [...input.files];
  if (!files.length) return;
  result.replaceChildren();
  [button.disabled, bar.hidden, bar.value] = [true, false, 0];
  try {
    show(await store(files));
  } catch (error) {
    const paragraph = document.createElement("p");
    paragraph.className = "fault";
    paragraph.textContent = `Not all files are stored: ${error.message || "the node does not answer"}. Store them again; what is here is not stored twice.`;
    result.append(paragraph);
  }
  [button.disabled, bar.hidden] = [false, true];
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
input.addEventListener("change", () => { button.disabled = !input.files.length; });
for (const name of ["dragenter", "dragover"]) {
  form.addEventListener(name, (event) => { event.preventDefault(); form.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) form.addEventListener(name, () => form.classList.remove("over"));
form.addEventListener("drop", (event) => {
  event.preventDefault();
  input.files = event.dataTransfer.files;
  button.disabled = !input.files.length;
});
