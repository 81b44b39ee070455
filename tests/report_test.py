import html
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import commands
import corpus

from ppl_jax import inputs, predictions, report, report_data, train
from ppl_jax.data import dialogues, scores

_EVIL = "Ask </script><img src=x onerror=document.title='evil'> & <b>me</b>"
_BROWSER = next(
  filter(
    None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
  ),
  None,
)
_HEADLESS = ("--headless", "--no-sandbox", "--disable-gpu")
_home = None


def setUpModule():
  """One run for most tests, of dialogues of which some are not labelled."""
  global _home
  folder = tempfile.TemporaryDirectory()
  absltest.unittest.addModuleCleanup(folder.cleanup)
  _home = pathlib.Path(folder.name)
  data = corpus.write(_home / "data")
  lines = corpus.lines("train", 30, 0)
  for line in lines[::2]:
    for utterance in line["utterances"]:
      utterance["label"] = None
  lines[0]["utterances"][0]["text"] = _EVIL
  lines[0]["dialogue_id"] = _EVIL
  corpus.write_split(data, "train", lines)
  config = corpus.config(data)
  config.baselines = True
  _train(config, _home / "run")


def _train(config, workdir):
  train.train_and_evaluate(inputs.prepare(config, workdir), workdir)


def _collect(workdir=None, limit=100):
  return report_data.collect(workdir or _home / "run", dialogues=limit)


class ReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_what_is_counted(self):
    data = _collect()
    dataset = dialogues.load_config(
      json.loads((_home / "run" / "config.json").read_text())["dataset"]
    )
    shares = scores.read_scores(_home / "data" / "scores-3.parquet").rows
    kept = predictions.load(predictions.path(_home / "run", "test"))
    self.assertEqual(data["test"]["metrics"], data["results"]["test"])
    self.assertEqual(np.sum(data["test"]["confusion"]), len(kept.dialogue_ids))
    share, accuracy, _ = data["test"]["coverage"][-1]
    self.assertEqual(share, 1)
    self.assertAlmostEqual(accuracy, data["results"]["test"]["accuracy"])

    right = total = 0
    by_id = {d["id"]: d for d in data["dialogues"]}
    self.assertLen(by_id, 30)
    for dialogue in dataset.splits["train"]:
      shown = by_id[dialogue.dialogue_id]["utterances"]
      S = shares[dialogue.dialogue_id].score
      for u, utterance in enumerate(shown):
        gold = set(np.flatnonzero(dialogue.gold[u]))
        voted = {int(S[u].argmax())} if S[u].max() > 0 else set()
        student = set(utterance["student"])
        labelled = bool(dialogue.labelled[u])
        expected = {
          "student_gold": labelled and student != gold,
          "votes_gold": labelled and voted != gold,
          "student_votes": student != voted,
          "split": S[u].max() < 0.6,
        }
        self.assertEqual(
          set(utterance["kinds"]), {k for k, v in expected.items() if v}
        )
        self.assertEqual(utterance["gold"] is not None, labelled)
        self.assertEqual(set(utterance["voted"]), voted)
        self.assertEqual(utterance["text"], dialogue.texts[u])
        right += labelled and voted == gold
        total += labelled
    self.assertEqual(data["teacher"]["count"], total)
    self.assertAlmostEqual(data["teacher"]["accuracy"], right / total)
    apart = [d["apart"] for d in data["dialogues"]]
    self.assertEqual(apart, sorted(apart, reverse=True))
    self.assertEqual(data["history"][0]["phase"], "pretrain")
    changed = {key: values for key, *values in data["changed"]}
    self.assertEqual(changed["model.hidden_size"][0], 16)
    self.assertEqual(changed["finetune.gold_fraction"][0], 0.3)
    for value, default in changed.values():
      self.assertNotEqual(value, default)
    self.assertNotIn("pairs.alpha", changed)

  def test_suggestions_are_the_least_sure_without_a_label(self):
    data = _collect()
    labels = {
      (line["dialogue_id"], i): u["label"]
      for line in map(
        json.loads, (_home / "data" / "train.jsonl").read_text().splitlines()
      )
      for i, u in enumerate(line["utterances"])
    }
    places = [(s["id"], s["utterance"]) for s in data["suggested"]]
    self.assertNotEmpty(places)
    for place in places:
      self.assertIsNone(labels[place])
    ids = [place[0] for place in places]
    self.assertLessEqual(max(map(ids.count, ids)), 2)
    doubts = [s["doubt"] for s in data["suggested"]]
    self.assertEqual(doubts, sorted(doubts, reverse=True))
    self.assertBetween(doubts[0], doubts[-1], 1)

  def test_labels_come_back_as_gold(self):
    output, path = self.folder / "report.html", self.folder / "labels.jsonl"
    status, said = commands.run(
      [
        sys.executable,
        "-m",
        "ppl_jax.report",
        f"--workdir={_home / 'run'}",
        f"--output={output}",
        f"--to_label={path}",
        "--dialogues=20",
      ]
    )
    self.assertEqual(status, 0, said)
    self.assertIn("<!doctype html>", output.read_text())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[:5]:
      self.assertIsNone(line["label"])
      line["label"] = "thank"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = json.loads((_home / "run" / "config.json").read_text())["dataset"]
    before = dialogues.load_config(config)
    after = dialogues.load_config(config | {"gold": str(path)})
    given = {(line["dialogue_id"], line["utterance"]) for line in lines[:5]}
    for old, new in zip(
      before.splits["train"], after.splits["train"], strict=True
    ):
      for u in range(len(old.texts)):
        if (old.dialogue_id, u) in given:
          self.assertFalse(old.labelled[u])
          self.assertTrue(new.labelled[u])
          self.assertEqual(new.gold[u].tolist(), [0, 0, 1])
        else:
          self.assertEqual(old.labelled[u], new.labelled[u])

  def test_says_where_files_are_no_longer_those_of_the_run(self):
    workdir = self.folder / "run"
    shutil.copytree(_home / "run", workdir)
    data = json.loads((workdir / "data.json").read_text())
    before = _collect(workdir)["notes"]
    data["config.scores"] = "other"
    (workdir / "data.json").write_text(json.dumps(data))
    [note] = [n for n in _collect(workdir)["notes"] if n not in before]
    self.assertIn("The files of config.scores changed after this run", note)

  def test_says_what_is_missing(self):
    data = corpus.write(self.folder / "data", classes=("ask",))
    (data / "test.jsonl").unlink()
    config = corpus.config(data, classes=("ask",))
    config.pretrain.objective = "none"
    _train(config, self.folder / "run")
    collected = _collect(self.folder / "run")
    self.assertIsNone(collected["test"])
    self.assertIsNone(collected["votes"])
    self.assertLen(collected["notes"], 2)
    self.assertIn("already, which is not shown", collected["suggestion_note"])
    if _BROWSER:
      page = report.render(collected)
      saved, shown = _label(page, self.folder, ["1", "-", "0"])
      self.assertEqual(saved, [["ask"], [], None])
      self.assertIn("no test split to judge by", shown)
      self.assertIn(collected["notes"][0], shown)
    with self.assertRaisesRegex(ValueError, "must hold a finished run"):
      _collect(self.folder)

  def test_texts_stay_texts(self):
    page = report.render(_collect())
    self.assertEqual(page.count("</script>"), 2)
    self.assertNotIn("<img", page)


# What a reader does with the page; `result` is what is checked.
_ACTIONS = """
const result = {errors, width: innerWidth, images: document.images.length};
const all = () => document.getElementById("matches").textContent;
const place = () => document.getElementById("place").textContent;
const shown = () => document.querySelector("#dialogue h3")?.textContent;
const set = (id, value) => {
  const node = document.getElementById(id);
  node.value = value;
  node.dispatchEvent(new Event("input", {bubbles: true}));
};
const press = (key) => document.body.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const root = document.documentElement;
result.overflow = root.scrollWidth - root.clientWidth;
result.dark = getComputedStyle(document.body).backgroundColor;
result.all = [all(), place(), shown()];
press("j"); result.next = [place(), shown()];
press("k"); result.back = [place(), shown()];
set("search", "Ask <\\/script>"); result.found = [all(), shown()];
set("search", "no such words");
result.none = document.getElementById("dialogue").textContent;
set("search", "");
result.kinds = {};
for (const option of document.getElementById("kind").options) {
  set("kind", option.value);
  result.kinds[option.value] = all();
}
const select = document.querySelector("#suggested select");
select.focus();
select.dispatchEvent(new KeyboardEvent("keydown", {key: "2"}));
result.chosen = select.selectedOptions[0].textContent;
result.given = document.getElementById("given").textContent;
let blob;
URL.createObjectURL = (given) => { blob = given; return "blob:x"; };
HTMLAnchorElement.prototype.click = function () {};
document.getElementById("save").click();
blob.text().then((text) => {
  result.saved = text;
  result.title = document.title;
  const pre = document.createElement("pre");
  pre.id = "result";
  pre.textContent = JSON.stringify(result);
  parent.document.body.append(pre);
});
"""
_WATCH = """<script>
const errors = [];
addEventListener("error", (e) => errors.push(String(e.message)), true);
const log = console.error;
console.error = (...what) => { errors.push(what.join(" ")); log(...what); };
</script>"""


def _browse(page, folder, *flags, width=1280, actions=""):
  """Opens a page in the browser; returns its console and its DOM.

  In a frame, which may be narrower than the browser's least window.
  """
  page = page.replace("<head>", f"<head>{_WATCH}", 1)
  page = page.replace("</body>", f"<script>{actions}</script></body>")
  file = pathlib.Path(folder, "page.html")
  file.write_text(
    f'<meta name="color-scheme" content="light dark"><iframe width="{width}"'
    f' height="900" style="border:0" srcdoc="{html.escape(page)}"></iframe>',
    "utf-8",
  )
  run = subprocess.run(
    [
      _BROWSER,
      *_HEADLESS,
      "--enable-logging=stderr",
      "--virtual-time-budget=2000",
      f"--user-data-dir={folder}/profile",
      *flags,
      file.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  )
  console = [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
  return console, run.stdout


# Types keys at the first suggested utterance and saves, again and again.
_LABEL = """
const saved = [];
window.Blob = class { constructor(parts) { saved.push(parts.join("")); } };
URL.createObjectURL = () => "blob:x";
HTMLAnchorElement.prototype.click = function () {};
const select = document.querySelector("#suggested select");
for (const keys of KEYS) {
  for (const key of "0" + keys) {
    select.dispatchEvent(new KeyboardEvent("keydown", {key, cancelable: true}));
  }
  document.getElementById("save").click();
}
const pre = parent.document.createElement("pre");
pre.id = "result";
pre.textContent = JSON.stringify([errors, saved, document.body.innerText]);
parent.document.body.append(pre);
"""


def _label(page, folder, keys):
  """Returns the label that each of `keys` saves, None = no line; the text."""
  actions = _LABEL.replace("KEYS", json.dumps(keys))
  console, dom = _browse(page, folder, "--dump-dom", actions=actions)
  found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
  errors, saved, text = json.loads(html.unescape(found[1]))
  if console or errors:
    raise AssertionError(f"The page must work, got {console + errors}.")
  return [json.loads(line)["label"] if line else None for line in saved], text


@absltest.unittest.skipUnless(
  _BROWSER, "needs a browser: apt-get install chromium"
)
class BrowserTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters((1280, 0), (1280, 1), (390, 0), (390, 1))
  def test_a_reader_at_work(self, width, is_light):
    data = _collect()
    console, dom = _browse(
      report.render(data),
      self.folder,
      "--dump-dom",
      f"--blink-settings=preferredColorScheme={is_light}",
      width=width,
      actions=_ACTIONS,
    )
    self.assertEmpty(console)
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    self.assertIsNotNone(found, "the page's script did not end")
    result = json.loads(html.unescape(found[1]))
    self.assertEmpty(result["errors"])
    self.assertEqual(result["width"], width)
    self.assertEqual(result["overflow"], 0)
    self.assertEqual(result["images"], 0)
    accuracy = data["results"]["baselines"]["tfidf"]["test"]["accuracy"]
    self.assertIn(
      "TF-IDF + logistic regression",
      re.sub(r"\s*<[^>]*>\s*", "|", html.unescape(dom)).split(
        f"|{100 * accuracy:.1f} %|"
      )[0],
    )
    self.assertNotEqual(result["title"], "evil")
    dark = [int(x) < 60 for x in re.findall(r"\d+", result["dark"])]
    self.assertEqual(dark, [not is_light] * 3)
    ids = [d["id"] for d in data["dialogues"]]
    self.assertEqual(result["all"], ["30 dialogues", "1 of 30", ids[0]])
    self.assertEqual(result["next"], ["2 of 30", ids[1]])
    self.assertEqual(result["back"], ["1 of 30", ids[0]])
    self.assertEqual(result["found"], ["1 dialogues", _EVIL])
    self.assertIn("No dialogue fits", result["none"])
    for kind, count in result["kinds"].items():
      fitting = sum(
        not kind or any(kind in u["kinds"] for u in d["utterances"])
        for d in data["dialogues"]
      )
      self.assertEqual(count, f"{fitting} dialogues")
    self.assertEqual(result["chosen"], corpus.CLASSES[1])
    self.assertEqual(result["given"], "1 labelled")
    first = data["suggested"][0]
    self.assertEqual(
      json.loads(result["saved"]),
      {
        "dialogue_id": first["id"],
        "utterance": first["utterance"],
        "text": first["text"],
        "label": corpus.CLASSES[1],
      },
    )

  def test_several_classes_or_none(self):
    data = _collect() | {"task": "multi_label", "one_label": False}
    expected = {"-": [], "12": ["ask", "tell"], "122": ["ask"], "1-": []}
    expected |= {"-2": ["tell"], "10": None}
    saved, _ = _label(report.render(data), self.folder, list(expected))
    self.assertEqual(dict(zip(expected, saved, strict=True)), expected)

  def test_prints(self):
    page, path = self.folder / "page.html", self.folder / "page.pdf"
    page.write_text(report.render(_collect()), "utf-8")
    command = [_BROWSER, *_HEADLESS, f"--user-data-dir={self.folder}/profile"]
    subprocess.run(
      [*command, f"--print-to-pdf={path}", page.as_uri()],
      capture_output=True,
      timeout=60,
      check=True,
    )
    self.assertStartsWith(path.read_bytes()[:5].decode("latin-1"), "%PDF-")
    self.assertGreater(path.stat().st_size, 20_000)


if __name__ == "__main__":
  absltest.main()
