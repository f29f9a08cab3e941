"use strict";
// Texts of reports are only ever written as textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const items = data.studies.flatMap((study, s) => study.candidates.map((candidate, c) => ({ study, s, candidate, c })));
const letters = "abcdef";
const memory = "reader-study " + data.study;
const none = () => data.errorTypes.map(() => 0);
const element = (id) => document.getElementById(id);
let state = { reader: "", place: 0, ratings: {} };
let history = []; // of the report that is shown: what backspace takes back

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(memory) || "null");
    if (kept && typeof kept.ratings === "object") state = kept;
    localStorage.setItem(memory, JSON.stringify(state));
  } catch {
    element("storage").hidden = false;
  }
  state.place = Math.min(Math.max(0, state.place), items.length - 1);
}

function save() {
  try {
    localStorage.setItem(memory, JSON.stringify(state));
  } catch {
    element("storage").hidden = false;
  }
}

function rating() {
  const id = items[state.place].candidate.id;
  state.ratings[id] = state.ratings[id] || { significant: none(), insignificant: none(), done: false };
  return state.ratings[id];
}

function film(uri, caption) {
  const figure = document.createElement("figure");
  const label = document.createElement("figcaption");
  label.textContent = uri ? caption : `${caption}: not available`;
  figure.append(label);
  if (uri) {
    const image = document.createElement("img");
    image.src = uri;
    image.alt = caption;
    figure.append(image);
  }
  return figure;
}

function show() {
  const { study, s, candidate, c } = items[state.place];
  const rated = Object.values(state.ratings).filter((r) => r.done).length;
  element("progress").textContent = `${rated} of ${items.length} reports rated`;
  element("place").textContent = `Study ${s + 1} of ${data.studies.length}, report ${c + 1} of ${study.candidates.length}` +
    (rating().done ? " (rated)" : "");
  element("films").replaceChildren(film(study.image, "Current film"), ...(study.priorImage ? [film(study.priorImage, "Prior film")] : []));
  element("reference").textContent = study.reference;
  element("candidate").textContent = candidate.text;
  element("indication").textContent = study.indication || "–";
  element("prior").textContent = study.prior || "–";
  for (const output of document.querySelectorAll("output")) {
    const count = rating()[output.dataset.part][letters.indexOf(output.dataset.row)];
    output.textContent = count;
    output.classList.toggle("some", count > 0);
  }
}

function count(part, type, step) {
  const counts = rating()[part];
  const before = counts[type];
  counts[type] = Math.min(20, Math.max(0, before + step));
  if (counts[type] !== before) history.push([part, type, -step]);
  rating().done = false; // a rating that is changed is confirmed again
  save();
  show();
}

function undo() {
  const last = history.pop();
  if (!last) return;
  count(...last);
  history.pop(); // what taking back has added
}

function go(step) {
  const place = Math.min(Math.max(0, state.place + step), items.length - 1);
  if (place !== state.place) history = [];
  state.place = place;
  save();
  show();
}

function done() {
  rating().done = true;
  if (state.place === items.length - 1) {
    save();
    show();
  } else go(1);
}

// One line, so that it is also a file of JSON lines; reports that nobody confirmed are left out.
function exported() {
  const named = (counts) => Object.fromEntries(data.errorTypes.map((name, i) => [name, counts[i]]));
  const ratings = items.map((item) => item.candidate.id).filter((id) => state.ratings[id] && state.ratings[id].done)
    .map((id) => ({ id, significant: named(state.ratings[id].significant), insignificant: named(state.ratings[id].insignificant) }));
  return JSON.stringify({ format: data.format, study: data.study, reader: state.reader, reports: items.length, ratings });
}

function exportFile() {
  const link = document.createElement("a");
  const name = state.reader.replace(/[^A-Za-z0-9_-]+/g, "_") || "reader";
  link.href = URL.createObjectURL(new Blob([exported() + "\n"], { type: "application/json" }));
  link.download = `${name}-${data.study}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

document.addEventListener("keydown", (event) => {
  if (event.target === element("reader") || event.ctrlKey || event.metaKey || event.altKey) return;
  const type = letters.indexOf(event.key.toLowerCase());
  const onButton = event.target.tagName === "BUTTON" || event.target.tagName === "SUMMARY";
  if (event.key.length === 1 && type >= 0) count(event.key === event.key.toLowerCase() ? "significant" : "insignificant", type, 1);
  else if (event.key === "Backspace") undo();
  else if (event.key === "ArrowRight") go(1);
  else if (event.key === "ArrowLeft") go(-1);
  else if (event.key === "Enter" && !onButton) done();
  else if (event.key === "p") element("context").open = !element("context").open;
  else if (event.key === "x") exportFile();
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("button[data-step]")) {
  button.addEventListener("click", () => count(button.dataset.part, letters.indexOf(button.dataset.row), Number(button.dataset.step)));
}
element("previous").addEventListener("click", () => go(-1));
element("next").addEventListener("click", () => go(1));
element("done").addEventListener("click", done);
element("export").addEventListener("click", exportFile);
element("reader").addEventListener("input", () => {
  state.reader = element("reader").value;
  save();
});
load();
element("reader").value = state.reader;
show();
