"use strict";
// One film in, its report out, as it is written. Everything that comes back is set as text, never as markup.
const at = (id) => document.getElementById(id);
const films = {};  // as dropped; a choice in the file field replaces it

for (const zone of document.querySelectorAll(".drop")) {
  const input = at(zone.dataset.film);
  const over = (is) => (event) => { event.preventDefault(); zone.classList.toggle("over", is); };
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length) { input.files = event.dataTransfer.files; input.dispatchEvent(new Event("change")); }
  });
  input.addEventListener("change", () => { films[input.id] = input.files[0]; });
}
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());  // beside a zone

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

async function base64(file) {
  if (file.size > Number(document.body.dataset.largest)) throw new Error(`${file.name} is too large`);
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
}

async function request() {
  const body = { anyway: at("anyway").checked };
  for (const name of ["indication", "comparison", "prior_report"]) body[name] = at(name).value;
  for (const name of ["image", "prior_image"]) if (films[name]) body[name] = await base64(films[name]);
  return JSON.stringify(body);
}

function show(line) {
  if (line.error) throw new Error(line.error.message);
  if (line.films) {
    at("result").hidden = false;
    at("film").src = line.films.image;
    at("prior").hidden = !line.films.prior_image;
    if (line.films.prior_image) at("prior_film").src = line.films.prior_image;
    at("prior_text").textContent = line.films.prior_image ? at("prior_report").value : "";
  }
  if (line.text) at("report").textContent += line.text;
  if (line.done) {
    const done = line.done;
    at("report").textContent = done.report || "(the model wrote nothing)";
    at("copy").disabled = !done.report;
    at("made").textContent = `${done.seconds.toFixed(1)} s, model ${done.model_sha256.slice(0, 12)}`;
    const remarks = [...(done.truncated ? ["cut at the limit of tokens"] : []), ...done.overridden];
    say(["Written", ...remarks].join("; ") + ".");
  }
  return Boolean(line.done);
}

async function write() {
  at("report").textContent = at("made").textContent = "";
  at("copy").disabled = true;
  at("result").hidden = true;
  say("Writing …");
  const answer = await fetch("/write", { method: "POST", headers: { "Content-Type": "application/json" }, body: await request() });
  if (!answer.ok) throw new Error((await answer.json()).error.message.replace("; --anyway writes one", "; tick the box to have one"));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", done = false;
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const lines = (rest + piece.value).split("\n");
    rest = lines.pop();
    for (const line of lines) done = show(JSON.parse(line)) || done;
  }
  if (!done) throw new Error("the server ended before the report did");
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("write").disabled = true;
  try { await write(); } catch (error) { say(error.message, true); }
  at("write").disabled = false;
  at("write").focus();
});

at("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(at("report").textContent);
    say("Copied.");
  } catch (error) {  // no clipboard for pages of other machines without encryption
    getSelection().selectAllChildren(at("report"));
    say("Selected: copy it with Ctrl+C.");
  }
});
