"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const KINDS = {
  "": "any",
  student_gold: "student and gold",
  votes_gold: "votes and gold",
  student_votes: "student and votes",
  split: "votes are split",
};
const byId = (id) => document.getElementById(id);
const percent = (x, digits = 1) => x == null ? "–" : `${(100 * x).toFixed(digits)} %`;
const number = (x, digits = 3) => x == null ? "–" : x.toFixed(digits);
const many = (x) => x.toLocaleString("en");

// Texts go in as text nodes only: nothing that a dialogue holds is HTML.
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "rect", "circle", "text", "title"];
  const node = svg.includes(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function table(head, rows, attributes = {}) {
  const line = (cells, kind) => make("tr", {}, ...cells.map(
    (cell) => cell instanceof Node ? cell : make(kind, {}, String(cell))));
  return make("div", {class: "scroll"}, make("table", attributes,
    make("thead", {}, line(head, "th")),
    make("tbody", {}, ...rows.map((row) => line(row, "td")))));
}

const names = (chosen) => chosen.length
  ? chosen.map((c) => data.classes[c]).join(", ") : "none";

// Round numbers between two bounds, about four of them.
function ticks(low, high) {
  const rough = (high - low) / 4, ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * ten).find((v) => v >= 0.8 * rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) {
    out.push([i * step, (i * step).toFixed(digits)]);
  }
  return out;
}

// A line chart; series: {points: [[x, y]], color, label, dots, dashed}.
function chart(series, {title, xlabel, x, y, asPercent = false, caption}) {
  const W = 360, H = 260, left = 46, right = 10, top = 10, bottom = 38;
  const points = series.flatMap((s) => s.points);
  const bounds = (given, axis) => {
    if (given) return given;
    const values = points.map((p) => p[axis]);
    const low = axis ? Math.min(...values) : 0, high = Math.max(...values);
    const room = axis && high > low ? 0.05 * (high - low) : 0;
    return high > low ? [low - room, high + room] : [low - 1, high + 1];
  };
  const [x0, x1] = bounds(x, 0), [y0, y1] = bounds(y, 1);
  const px = (v) => left + (v - x0) / (x1 - x0) * (W - left - right);
  const py = (v) => H - bottom - (v - y0) / (y1 - y0) * (H - top - bottom);
  const text = (v) => asPercent ? `${Math.round(100 * v)} %` : String(+v.toPrecision(4));
  const svg = make("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title});
  for (const [v, name] of ticks(y0, y1)) {
    svg.append(
      make("line", {x1: left, x2: W - right, y1: py(v), y2: py(v), stroke: "var(--line)"}),
      make("text", {x: left - 5, y: py(v) + 4, "text-anchor": "end"}, asPercent ? text(v) : name));
  }
  for (const [v, name] of ticks(x0, x1)) {
    svg.append(make("text", {x: px(v), y: H - bottom + 15,
      "text-anchor": px(v) > W - 40 ? "end" : "middle"}, asPercent ? text(v) : many(Number(name))));
  }
  svg.append(make("text", {x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle"}, xlabel));
  for (const s of series) {
    if (!s.points.length) continue;
    const d = s.points.map(([a, b], i) => `${i ? "L" : "M"}${px(a).toFixed(1)},${py(b).toFixed(1)}`);
    svg.append(make("path", {d: d.join(""), fill: "none", stroke: s.color,
      "stroke-width": s.dashed ? 1 : 2, "stroke-dasharray": s.dashed ? "4 4" : null}));
    if (s.dots) {
      for (const [a, b, share] of s.points) {
        const r = share == null ? 3 : 2 + 9 * Math.sqrt(share);
        const of = share == null ? "" : `, ${percent(share)} of all`;
        svg.append(make("circle", {cx: px(a), cy: py(b), r, fill: s.color, "fill-opacity": 0.75},
          make("title", {}, `${text(a)}, ${text(b)}${of}`)));
      }
    }
  }
  const legend = series.filter((s) => s.label).map((s) => {
    const mark = make("span", {}, "● ");
    mark.style.color = s.color;
    return make("span", {}, mark, `${s.label} `);
  });
  return make("figure", {}, make("h3", {}, title), svg,
    make("figcaption", {}, ...legend, caption ?? ""));
}

const BASELINES = {
  majority: "majority class", tfidf: "TF-IDF + logistic regression", probe: "linear probe of the frozen encoder",
};
const SERIES = ["var(--student)", "var(--votes)", "var(--gold)", "var(--wrong)", "var(--faint)"];
const DIAGONAL = {points: [[0, 0], [1, 1]], color: "var(--faint)", dashed: true};

function header() {
  const results = data.results, test = data.test?.metrics ?? results.test ?? null;
  document.title = `${data.dataset}: ${data.workdir}`;
  byId("title").textContent = `${data.dataset}: ${data.workdir}`;
  const gold = results.gold_labels;
  byId("subtitle").textContent = `Objective on votes: ${results.objective}. Gold in use:`
    + ` ${many(gold.train)} labels of train and ${many(gold.dev)} of dev`
    + ` (${+(100 * results.gold_fraction).toFixed(2)} %).`;
  const tiles = [
    [percent(test?.accuracy), "test accuracy"],
    [percent(test?.macro_f1), "macro F1"],
    [number(test?.ece), "calibration error"],
    data.teacher && [percent(data.teacher.accuracy), "votes' accuracy, train"],
    results.votes && [
      `${percent(results.votes.votes)} / ${percent(results.votes.student)}`,
      `votes / student, on the same ${many(results.votes.count)} held-out utterances with gold`],
    results.heldout_votes?.vote_agreement != null
      && [percent(results.heldout_votes.vote_agreement), "agrees with held-out votes"],
  ];
  for (const tile of tiles.filter(Boolean)) {
    byId("tiles").append(make("div", {class: "tile"},
      make("b", {}, tile[0]), make("span", {}, tile[1])));
  }
  byId("notes").append(...data.notes.map((note) => make("li", {}, note)));
}

function metrics() {
  const test = data.test?.metrics ?? data.results.test;
  if (!test) {
    byId("classes").append("There is no test split to judge by.");
    return;
  }
  const beside = Object.entries(data.results.baselines ?? {}).filter(([, m]) => m.test);
  if (beside.length) {
    const row = (name, m) => [name, percent(m.accuracy), percent(m.macro_f1), number(m.ece)];
    byId("classes").append(make("h3", {}, "Beside what anybody could train on the same votes and gold"), table(
      ["", "accuracy", "macro F1", "calibration error"],
      [row("student", test), ...beside.map(([name, m]) => row(BASELINES[name] ?? name, m.test))]));
  }
  const per = Object.entries(test.per_class);
  byId("classes").append(make("h3", {}, "Classes"), table(
    ["class", "precision", "recall", "F1", "gold"],
    per.map(([name, m]) => [name, percent(m.precision), percent(m.recall), percent(m.f1), many(m.support)])));
  const confusion = data.test?.confusion;
  if (!confusion) {
    if (data.test) byId("confusion").append("Each class has a sigmoid, so there is no confusion matrix.");
    return;
  }
  if (data.classes.length > 6) byId("confusion").parentNode.classList.add("stacked");
  const rows = confusion.map((row, i) => {
    const total = Math.max(row.reduce((a, b) => a + b, 0), 1);
    return [data.classes[i], ...row.map((count, j) => {
      const share = count / total;
      const cell = make("td", {class: "cell",
        title: `gold ${data.classes[i]}, student ${data.classes[j]}: ${count}`},
        count ? `${Math.round(100 * share)} %` : "", make("br"), count ? many(count) : "");
      const color = i == j ? "var(--student)" : "var(--wrong)";
      cell.style.background = `color-mix(in srgb, ${color} ${Math.round(70 * share)}%, var(--card))`;
      return cell;
    })];
  });
  byId("confusion").append(make("h3", {}, "Gold (rows) and student (columns)"),
    table(["", ...data.classes], rows, {class: "matrix"}));
}

function calibration() {
  const charts = byId("charts");
  // A dot's area is its share of what is counted; one of very few says nothing.
  const points = (bins) => bins.filter((bin) => bin[2] >= 0.005);
  const whole = {x: [0, 1], y: [0, 1], asPercent: true};
  if (data.test) {
    charts.append(chart(
      [DIAGONAL, {points: points(data.test.reliability), color: "var(--student)", dots: true}],
      {title: "Student on test: is it as sure as it is right?", xlabel: "confidence",
        caption: `Upwards: share right. Expected calibration error ${number(data.test.metrics.ece)}.`, ...whole}));
  }
  if (data.teacher) {
    charts.append(chart(
      [DIAGONAL, {points: points(data.teacher.reliability), color: "var(--votes)", dots: true}],
      {title: "Votes on train: is a share a probability?", xlabel: "share of votes for a class",
        caption: `Upwards: share right. Error ${number(data.teacher.ece)} without shares of 0, ${number(data.teacher.ece_with_zeros)}`
          + ` with them; ${many(data.teacher.count)} utterances with gold.`, ...whole}));
  }
  if (data.test) {
    const curve = data.test.coverage;
    const at = (least) => curve.filter((p) => p[1] >= least).at(-1);
    const good = [0.99, 0.95, 0.9, 0.8].map((least) => [least, at(least)])
      .find((x) => x[1]?.[0] >= 0.2);
    charts.append(chart([{points: curve.map(([share, right]) => [share, right]), color: "var(--student)"}],
      {title: "Test accuracy where the student answers", xlabel: "share answered, the surest first",
        x: [0, 1], asPercent: true,
        caption: good ? make("span", {},
          `${percent(good[0], 0)} right on the surest ${percent(good[1][0], 0)}: `,
          // Down, or fewer would be answered than is said.
          make("code", {}, `--abstain_below=${(Math.floor(1e5 * good[1][2]) / 1e5).toFixed(5)}`)) : ""}));
  }
  if (!charts.children.length) charts.append("Neither a test split nor votes with gold to measure by.");
}

function training() {
  const phases = [...new Set(data.history.map((e) => e.phase))];
  const place = byId("training");
  for (const phase of phases) {
    const entries = data.history.filter((e) => e.phase == phase);
    const loss = entries.filter((e) => "loss" in e).map((e) => [e.step, e.loss]);
    const evals = entries.filter((e) => "metric" in e);
    if (loss.length) {
      place.append(chart([{points: loss, color: "var(--student)"}],
        {title: `${phase}: training loss`, xlabel: "step"}));
    }
    const keys = evals.length ? Object.keys(evals[0]).filter(
      (k) => !["phase", "step", "metric"].includes(k) && evals.some((e) => e[k] != null)) : [];
    if (keys.length) {
      const best = evals.reduce((a, b) => b.metric > a.metric ? b : a);
      place.append(chart(keys.map((key, i) => ({
        points: evals.filter((e) => e[key] != null).map((e) => [e.step, e[key]]),
        color: SERIES[i % SERIES.length], label: key.replaceAll("_", " "), dots: true})),
        {title: `${phase}: ${phase == "pretrain" ? "held-out votes" : "dev"}`, xlabel: "step",
          caption: `Step ${best.step} is kept.`}));
    }
  }
  if (!phases.length) place.append("Nothing was kept of the training.");
}

// Chances of the student (upper bar) and shares of the votes (lower).
function bars(utterance) {
  const classes = new Map();
  for (const [c, p] of utterance.chances) classes.set(c, [p, null]);
  for (const [c, s] of utterance.votes ?? []) classes.set(c, [classes.get(c)?.[0] ?? null, s]);
  const shown = [...classes].filter(([, [p, s]]) => (p ?? 0) >= 0.05 || s)
    .sort((a, b) => Math.max(...b[1]) - Math.max(...a[1])).slice(0, 4);
  return make("div", {}, ...shown.map(([c, [p, s]]) => {
    const student = make("i", {class: "s"}), votes = make("i", {class: "v"});
    student.style.width = `${100 * (p ?? 0)}%`;
    votes.style.width = `${100 * (s ?? 0)}%`;
    const title = `${data.classes[c]}: student ${percent(p)}, votes ${utterance.votes ? percent(s ?? 0, 0) : "none"}`;
    return make("div", {class: "bar", title}, make("span", {}, data.classes[c]),
      make("span", {class: "track"}, student, votes),
      make("span", {},
        make("span", {class: "student"}, Math.round(100 * (p ?? 0))), " ",
        make("span", {class: "votes"}, utterance.votes ? Math.round(100 * (s ?? 0)) : "")));
  }));
}

function line(u) {
  const chance = u.student.length == 1 ? u.chances.find(([c]) => c == u.student[0])?.[1] : null;
  return make("div", {class: u.kinds.length ? "utterance differs" : "utterance"},
    make("div", {},
      make("div", {class: "speaker"}, u.speaker),
      make("div", {class: "text"}, u.text),
      make("div", {class: "said"},
        u.gold ? make("span", {class: "tag gold"}, `gold: ${names(u.gold)}`) : null,
        make("span", {class: "tag student"},
          `student: ${names(u.student)}${chance == null ? "" : ` ${percent(chance, 0)}`}`),
        u.votes ? make("span", {class: "tag votes"},
          `votes: ${names(u.voted)}`) : null)),
    bars(u));
}

function disagreement() {
  byId("looked").textContent = `The ${many(data.dialogues.length)} dialogues with most of it, an utterance,`
    + ` of ${many(data.looked_at)} of train that were looked at. Blue bars: the student's probabilities;`
    + " orange: shares of the votes; both in percent.";
  const kind = byId("kind"), cls = byId("class"), search = byId("search");
  for (const [value, name] of Object.entries(KINDS)) kind.append(make("option", {value}, name));
  cls.append(make("option", {value: ""}, "any"));
  data.classes.forEach((name, c) => cls.append(make("option", {value: c}, name)));
  let found = [], at = 0;
  const fits = (u) => (kind.value ? u.kinds.includes(kind.value) : true)
    && (cls.value === "" || [...u.student, ...(u.gold ?? []), ...(u.votes ?? []).map((v) => v[0])]
      .includes(Number(cls.value)) && (kind.value || u.kinds.length))
    && u.text.toLowerCase().includes(search.value.toLowerCase());
  function show(moved) {
    const article = byId("dialogue");
    article.replaceChildren();
    byId("place").textContent = found.length ? `${at + 1} of ${found.length}` : "";
    byId("matches").textContent = `${many(found.length)} dialogues`;
    byId("previous").disabled = at <= 0;
    byId("next").disabled = at >= found.length - 1;
    if (!found.length) {
      article.append("No dialogue fits. Choose another kind or class.");
      return;
    }
    const d = found[at];
    const part = d.utterances.length < d.length
      ? `, utterances ${d.first + 1} to ${d.first + d.utterances.length} of ${d.length}` : "";
    article.append(make("h3", {}, `${d.id}${part}`), ...d.utterances.map(line));
    if (moved) byId("dialogues").scrollIntoView({block: "start"});
  }
  function filter() {
    found = data.dialogues.filter((d) => d.utterances.some(fits));
    at = 0;
    show(false);
  }
  function move(by) {
    const to = Math.min(Math.max(at + by, 0), found.length - 1);
    if (to != at && to >= 0) { at = to; show(true); }
  }
  byId("filters").addEventListener("input", filter);
  byId("filters").addEventListener("submit", (e) => e.preventDefault());
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || ["INPUT", "SELECT", "TEXTAREA"].includes(e.target.tagName)) return;
    const by = {j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1}[e.key];
    if (by) { e.preventDefault(); move(by); }
    if (e.key == "/") { e.preventDefault(); search.focus(); }
  });
  filter();
}

function labelling() {
  byId("labelnote").textContent = `${many(data.suggested.length)} utterances of which student and votes are least`
    + ` sure, at most two of a dialogue. ${data.suggestion_note} Save what you chose, and train again with`
    + " --config.dataset.gold=labels.jsonl and --config.finetune.gold_fraction=1."
    + " A second round's labels go to the end of the same file.";
  // Where each class has a sigmoid, an utterance may be of none of them.
  const multiple = data.task == "multi_label" && data.classes.length > 1;
  if (!data.one_label) byId("labelkeys").append(", ", make("kbd", {}, "-"), " none of these");
  const chosen = new Map();
  let saved = true;
  const count = () => { byId("given").textContent = `${chosen.size} labelled`; };
  data.suggested.forEach((u, i) => {
    const select = make("select", {"aria-label": `Label of utterance ${u.utterance} of ${u.id}`});
    if (multiple) select.setAttribute("multiple", "");
    else select.append(make("option", {value: ""}, "label …"));
    data.classes.forEach((name, c) => select.append(make("option", {value: c}, name)));
    const none = data.one_label ? null : make("option", {value: "none"}, "none of these");
    if (none) select.append(none);
    const changed = () => {
      if (select.selectedOptions.length > 1) none.selected = false;
      const values = [...select.selectedOptions].map((o) => o.value).filter((value) => value !== "");
      const picked = values.filter((value) => value !== "none").map((c) => data.classes[c]);
      if (values.length) chosen.set(i, data.one_label ? picked[0] : picked);
      else chosen.delete(i);
      saved = !chosen.size;
      count();
    };
    select.addEventListener("change", changed);
    select.addEventListener("keydown", (e) => {
      let value = null;
      if (e.key == "0") value = "";
      else if (e.key == "-" && none) value = "none";
      else if (/^[1-9]$/.test(e.key) && e.key <= data.classes.length) value = String(e.key - 1);
      if (value == null || e.ctrlKey || e.metaKey || e.altKey) return;
      e.preventDefault();
      if (!multiple) select.value = value;
      else if (value === "" || value === "none") {
        for (const option of select.options) option.selected = option.value === value;
      } else {
        const option = select.options[Number(value)];
        option.selected = !option.selected;
      }
      changed();
    });
    byId("suggested").append(make("li", {},
      ...u.context.map((c) => make("div", {class: "context"}, `${c.speaker}: ${c.text}`)),
      make("div", {class: "row"},
        make("div", {}, make("div", {class: "text"}, `${u.speaker}: ${u.text}`), select,
          make("span", {class: "faint"}, ` ${u.id}, utterance ${u.utterance}`)),
        bars(u))));
  });
  count();
  addEventListener("beforeunload", (e) => { if (!saved) e.preventDefault(); });
  byId("save").addEventListener("click", () => {
    const lines = [...chosen].map(([i, label]) => {
      const u = data.suggested[i];
      return JSON.stringify({dialogue_id: u.id, utterance: u.utterance, text: u.text, label});
    });
    const link = make("a", {download: "labels.jsonl",
      href: URL.createObjectURL(new Blob([lines.map((l) => `${l}\n`).join("")], {type: "application/jsonl"}))});
    link.click();
    URL.revokeObjectURL(link.href);
    saved = true;
  });
}

function settings() {
  byId("counts").append(make("h3", {}, "Data"), table(["split", "dialogues", "utterances", "labelled"],
    data.counts.map((c) => [c.split, many(c.dialogues), many(c.utterances), many(c.labelled)])));
  const text = (value) => typeof value == "string" ? value || "\u201c\u201d" : JSON.stringify(value ?? null);
  const pairs = (rows) => rows.map(([key, ...values]) => [key,
    ...values.map((value) => make("td", {class: "long"}, text(value)))]);
  if (data.votes) byId("votes").append(make("h3", {}, "Votes"), table(["", ""], pairs(data.votes)));
  if (data.changed) {
    byId("changed").append(make("h3", {}, "Settings that are not the defaults of configs/common.py"),
      table(["config", "value", "default"], pairs(data.changed), {class: "texts"}));
  }
  byId("values").append(table(["config", "value"], pairs(data.settings), {class: "texts"}));
}

for (const draw of [header, metrics, calibration, training, disagreement, labelling, settings]) draw();
