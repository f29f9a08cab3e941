// The study browser. All text reaches the page by textContent, never as HTML. Only the rows in view are in the document.
"use strict";
const holder = document.getElementById("studies");
if (holder) startBrowser(JSON.parse(holder.textContent));

function startBrowser(data) {
  const rowHeight = 46;
  const field = (id) => document.getElementById(id);
  const list = field("list"), rows = field("rows"), view = field("study");
  let shown = [];  // indices of studies that pass the filters, in order
  let chosen = 0;  // position in `shown`

  fill(field("model"), data.models.map((name, i) => [i, name]));
  fill(field("sort"), [["", "order of the data"], ["id", "study id"], ["errors", "errors"], ["words", "words of the candidate"],
    ...data.metrics.map((name, i) => [i, name])]);
  fill(field("dataset"), [...new Set(data.studies.map((s) => s.dataset))].map((name) => [name, name]));
  fill(field("finding"), data.conditions.map((name, i) => [i, name]));
  field("model").value = String(data.chosenModel);
  field("graph-choice").hidden = data.graphName === null;

  const words = (text) => text.toLowerCase();
  const haystacks = data.studies.map((s) =>
    words([s.id, s.reference, ...s.candidates.map((c) => (c ? c.text : ""))].join("\n")));

  function update() {
    const keep = shown.length ? shown[chosen] : -1;
    const model = Number(field("model").value);
    const terms = words(field("search").value).split(/\s+/).filter(Boolean);
    const dataset = field("dataset").value;
    const finding = field("finding").value;
    const agreement = field("agreement").value;
    const [least, most] = field("errors").value ? field("errors").value.split("-").map(Number) : [null, null];
    shown = [];
    data.studies.forEach((study, i) => {
      const candidate = study.candidates[model];
      if (dataset && study.dataset !== dataset) return;
      if (!terms.every((term) => haystacks[i].includes(term))) return;
      if (finding !== "" && !found(study, candidate, Number(finding), agreement)) return;
      if (least !== null) {
        const errors = errorsOf(candidate);
        if (errors === null || errors < least || errors > most) return;
      }
      shown.push(i);
    });
    const key = sortKey(model);
    if (key) {
      const direction = Number(field("order").value);
      const keys = new Map(shown.map((i) => [i, key(data.studies[i])]));
      // What has no value comes last in either direction.
      shown.sort((a, b) => {
        const x = keys.get(a), y = keys.get(b);
        if (x === null || y === null) return (x === null) - (y === null) || a - b;
        return (x < y ? -1 : x > y ? 1 : 0) * direction || a - b;
      });
    }
    chosen = Math.max(0, shown.indexOf(keep));
    field("count").textContent = `${shown.length.toLocaleString("en")} of ${data.studies.length.toLocaleString("en")} studies`;
    rows.style.height = `${shown.length * rowHeight}px`;
    choose(chosen);
  }

  function sortKey(model) {
    const by = field("sort").value;
    if (by === "") return null;
    if (by === "id") return (study) => study.id;
    const ofCandidate = {
      errors: errorsOf,
      words: (c) => c.text.split(/\s+/).filter(Boolean).length,
    }[by] || ((c) => c.metrics[Number(by)]);
    return (study) => (study.candidates[model] ? ofCandidate(study.candidates[model]) : null);
  }

  function choose(position) {
    if (!shown.length) {
      rows.replaceChildren();
      view.replaceChildren(element("p", "absent", "No study passes these filters."));
      return;
    }
    chosen = Math.min(Math.max(position, 0), shown.length - 1);
    const top = chosen * rowHeight;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + rowHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + rowHeight - list.clientHeight;
    drawRows();
    drawStudy(data.studies[shown[chosen]]);
  }

  function drawRows() {
    const first = Math.max(0, Math.floor(list.scrollTop / rowHeight) - 3);
    const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / rowHeight) + 7);
    const model = Number(field("model").value);
    const by = field("sort").value;
    const metric = by !== "" && !isNaN(by) ? Number(by) : data.shownMetric;
    rows.replaceChildren(...Array.from({ length: last - first }, (_, k) => {
      const position = first + k, study = data.studies[shown[position]], candidate = study.candidates[model];
      const row = element("div", "row");
      row.style.top = `${position * rowHeight}px`;
      row.id = `row-${position}`;
      row.dataset.study = study.id;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(position === chosen));
      const errors = errorsOf(candidate);
      row.append(
        element("span", "", study.id),
        element("span", "", candidate && candidate.metrics[metric] !== null ? candidate.metrics[metric].toFixed(3).replace("-", "−") : "–"),
        element("span", "small", [study.dataset, study.encounter ? `encounter ${study.encounter}` : "", study.temporal].filter(Boolean).join(" · ")),
        element("span", "small", errors === null ? "" : `${errors} error${errors === 1 ? "" : "s"}`),
      );
      row.addEventListener("click", () => choose(position));
      return row;
    }));
    list.setAttribute("aria-activedescendant", `row-${chosen}`);
  }

  function drawStudy(study) {
    const model = Number(field("model").value);
    const bar = element("div", "bar");
    const title = element("div");
    title.append(element("h3", "", study.id), element("div", "hint", facts(study)));
    const steps = element("div");
    for (const [text, by] of [["‹ previous", -1], ["next ›", 1]]) {
      const button = element("button", "", text);
      button.type = "button";
      button.addEventListener("click", () => choose(chosen + by));
      steps.append(button, " ");
    }
    bar.append(title, steps);

    const images = element("div", "images");
    for (const [name, key] of [["current", study.image], ["prior", study.priorImage]]) {
      const source = imageSource(key);
      if (!source) continue;
      const figure = element("figure"), image = element("img");
      image.src = source;
      image.alt = `${name} chest X-ray of study ${study.id}`;
      figure.append(image, element("figcaption", "", name));
      images.append(figure);
    }

    const context = element("dl", "context");
    for (const [name, text] of [["Indication", study.indication], ["Comparison", study.comparison], ["Prior report", study.prior]])
      if (text) context.append(element("dt", "", name), element("dd", "", text));

    const mark = document.querySelector("#marks input:checked").value;
    const reports = element("div", "reports");
    const chosenCandidate = study.candidates[model];
    const reference = element("div", "report reference");
    reference.append(element("h4", "", "Reference"),
      textOf(study.reference, study.graph, chosenCandidate, mark),
      mark === "graph"
        ? graphChips(study.graph, study.reference, chosenCandidate, "reference")
        : chips(study.labels.map((value, i) => (isPositive(value) ? ["agreed", data.conditions[i]] : null))));
    reports.append(reference);
    data.models.forEach((name, i) => {
      const candidate = study.candidates[i];
      if (!candidate) return;
      const box = element("div", i === model ? "report chosen" : "report");
      box.append(element("h4", "", name));
      box.append(candidate.text.trim()
        ? candidateText(study, candidate, mark)
        : element("p", "absent", `(no text: ${candidate.status})`));
      box.append(mark === "graph"
        ? graphChips(study.graph, study.reference, candidate, "candidate")
        : chips(study.labels.map((value, k) => {
          const truth = isPositive(value), said = isPositive(candidate.labels[k]);
          if (truth && said) return ["agreed", `✓ ${data.conditions[k]}`];
          if (truth) return ["missed", `− ${data.conditions[k]} missed`];
          return said ? ["false", `+ ${data.conditions[k]} added`] : null;
        })));
      const numbers = element("dl", "numbers");
      data.metrics.forEach((metric, k) => {
        if (candidate.metrics[k] !== null)
          numbers.append(element("dt", "", metric), element("dd", "", candidate.metrics[k].toFixed(3).replace("-", "−")));
      });
      box.append(numbers);
      if (candidate.significant) box.append(element("p", "judged", errorText(candidate)));
      reports.append(box);
    });
    view.replaceChildren(bar, images, context, legend(mark), reports);
  }

  // The reference, marked against the chosen model's report.
  function textOf(text, graph, candidate, mark) {
    const other = candidate ? candidate.text : "";
    if (mark === "words") return marked(text, difference(text, other)[0], "missing");
    if (mark === "graph" && graph)
      return markedSpans(text, alone(graph, text, candidate && candidate.graph, other), "missing");
    return markedSpans(text, [], "");
  }

  function candidateText(study, candidate, mark) {
    if (mark === "words") return marked(candidate.text, difference(study.reference, candidate.text)[1], "added");
    if (mark === "graph" && candidate.graph)
      return markedSpans(candidate.text, alone(candidate.graph, candidate.text, study.graph, study.reference), "added");
    return markedSpans(candidate.text, [], "");
  }

  // Entities of one graph that the other lacks; RadGraph-F1 compares words and label, not places.
  function alone(graph, text, otherGraph, otherText) {
    const other = new Set((otherGraph || []).map((entity) => entityKey(entity, otherText)));
    return graph.filter((entity) => !other.has(entityKey(entity, text)));
  }

  function entityWords(entity, text) {
    return entity.length > 3 ? entity[3] : [...text].slice(entity[0], entity[1]).join("").toLowerCase().split(/\s+/).join(" ");
  }
  function entityKey(entity, text) { return `${entity[2]} ${entityWords(entity, text)}`; }

  function graphChips(reference, referenceText, candidate, side) {
    if (!reference || !candidate || !candidate.graph) return chips([]);
    const [mine, text, others, othersText] = side === "reference"
      ? [reference, referenceText, candidate.graph, candidate.text]
      : [candidate.graph, candidate.text, reference, referenceText];
    const name = (entity, from) => `${entityWords(entity, from)}, ${data.graphLabels[entity[2]]}`;
    const shared = new Set(others.map((entity) => entityKey(entity, othersText)));
    const agreed = new Set(mine.map((entity) => entityKey(entity, text)).filter((key) => shared.has(key)));
    const found = [["agreed", `✓ ${agreed.size} in both`]];
    const only = (graph, from, rest, restText, kind, sign) => {
      const names = new Set(alone(graph, from, rest, restText).map((entity) => name(entity, from)));
      for (const text of names) found.push([kind, `${sign} ${text}`]);
    };
    only(reference, referenceText, candidate.graph, candidate.text, "missed", "−");
    if (side === "candidate") only(candidate.graph, candidate.text, reference, referenceText, "false", "+");
    return chips(found);
  }

  function legend(mark) {
    const line = element("p", "legend");
    if (mark === "words")
      line.append("Words only in ", element("mark", "missing", "the reference"), " (against the chosen model), only in ",
        element("mark", "added", "the model's report"), ".");
    if (mark === "labels") line.append("Conditions that the labeler finds: ✓ in both, − missed, + added.");
    if (mark === "graph") {
      line.append(`Entities of ${data.graphName} only in `, element("mark", "missing", "the reference's graph"),
        " (against the chosen model), only in ", element("mark", "added", "the model's"), ".");
      if (data.graphName.includes("[")) line.append(" The graph is of rules that stand in for RadGraph.");
    }
    return line;
  }

  function facts(study) {
    return [study.dataset, study.encounter ? `encounter ${study.encounter}` : "", study.temporal, study.sex,
      study.age === null ? "" : `${Math.round(study.age)} years`, study.race].filter(Boolean).join(" · ");
  }

  function errorText(candidate) {
    const kinds = data.errorTypes.map((name, i) => {
      const significant = candidate.significant[i], other = candidate.insignificant[i];
      if (!significant && !other) return "";
      return `${name.replaceAll("_", " ")} ${significant + other}${significant ? ` (${significant} significant)` : ""}`;
    }).filter(Boolean);
    const errors = errorsOf(candidate);
    return `judge: ${errors} error${errors === 1 ? "" : "s"}${kinds.length ? " — " + kinds.join(", ") : ""}`;
  }

  function imageSource(key) {
    if (key === null || !(key in data.imageChunk)) return null;
    return chunk(data.imageChunk[key])[key] || null;
  }

  const parsed = new Map();  // the last few image chunks; others stay unparsed in the page
  function chunk(number) {
    if (!parsed.has(number)) {
      if (parsed.size > 8) parsed.delete(parsed.keys().next().value);
      parsed.set(number, JSON.parse(field(`images-${number}`).textContent));
    }
    return parsed.get(number);
  }

  list.addEventListener("scroll", drawRows, { passive: true });
  addEventListener("resize", () => shown.length && drawRows());
  field("filters").addEventListener("input", update);
  field("filters").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) && event.target.type !== "radio";
    if (event.key === "/" && !typing) { field("search").focus(); event.preventDefault(); return; }
    if (event.key === "Escape" && typing) { event.target.blur(); return; }
    if (typing) return;
    const inBrowser = event.target === list || field("browser").getBoundingClientRect().top < innerHeight / 2;
    const by = { j: 1, k: -1 }[event.key] || (inBrowser && { ArrowDown: 1, ArrowUp: -1 }[event.key]);
    if (!by) return;
    choose(chosen + by);
    event.preventDefault();
  });
  update();
}

function isPositive(label) { return label === 1 || label === 3; }  // CheXbert's classes: 1 positive, 3 uncertain

function errorsOf(candidate) {
  if (!candidate || !candidate.significant) return null;
  return [...candidate.significant, ...candidate.insignificant].reduce((a, b) => a + b, 0);
}

function found(study, candidate, condition, agreement) {
  const truth = isPositive(study.labels[condition]);
  const said = candidate ? isPositive(candidate.labels[condition]) : false;
  return { reference: truth, missed: truth && !said, added: said && !truth, either: truth || said }[agreement];
}

// Which words of two texts are not in their longest common subsequence: two lists of booleans.
function difference(first, second) {
  const a = tokens(first).map(plain), b = tokens(second).map(plain);
  const width = b.length + 1, table = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      table[i * width + j] = a[i] === b[j]
        ? table[(i + 1) * width + j + 1] + 1
        : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
  const alone = [a.map(() => true), b.map(() => true)];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) { alone[0][i++] = false; alone[1][j++] = false; }
    else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
    else j++;
  }
  return alone;
}

function tokens(text) { return text.split(/\s+/).filter(Boolean).slice(0, 2000); }
function plain(word) { return word.toLowerCase().replace(/[.,;:()]/g, ""); }

function marked(text, alone, kind) {
  const paragraph = element("p");
  const all = text.split(/\s+/).filter(Boolean);
  for (let i = 0; i < all.length;) {
    const mark = Boolean(alone[i]);
    let end = i;
    while (end < all.length && Boolean(alone[end]) === mark) end++;
    const run = all.slice(i, end).join(" ");
    paragraph.append(mark ? element("mark", kind, run) : run, " ");
    i = end;
  }
  return paragraph;
}

// The text with the characters of `spans` ([start, end, …], in code points) marked.
function markedSpans(text, spans, kind) {
  const paragraph = element("p"), characters = [...text];
  let position = 0;
  for (const [start, end] of spans.filter(([start]) => start >= 0).sort((a, b) => a[0] - b[0])) {
    if (start < position) continue;
    paragraph.append(characters.slice(position, start).join(""), element("mark", kind, characters.slice(start, end).join("")));
    position = end;
  }
  paragraph.append(characters.slice(position).join(""));
  return paragraph;
}

function chips(items) {
  const box = element("div", "chips");
  box.append(...items.filter(Boolean).map(([kind, text]) => element("span", `chip ${kind}`, text)));
  return box;
}

function fill(select, options) {
  for (const [value, text] of options) {
    const option = element("option", "", text);
    option.value = String(value);
    select.append(option);
  }
}

function element(tag, className = "", text = null) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  return made;
}
