"""A page that shows what the teacher, the votes and the student did.

    python -m ppl_jax.report --workdir=runs/mine --output=report.html

The page needs no network: settings, training curves, test metrics, calibration,
accuracy where the student may abstain, the dialogues where student, votes and
gold disagree most, and the utterances that a person should label next. Labels
given on the page are saved as JSON lines, and come back in as gold:

    python -m ppl_jax.main ... --config.dataset.gold=labels.jsonl

with `--config.finetune.gold_fraction=1`, to use all of them.
"""

import importlib.resources
import json
import logging
import pathlib

from absl import flags

from ppl_jax import commands, report_data

_LOG = logging.getLogger("ppl_jax.report")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
_OUTPUT = flags.DEFINE_string("output", None, "The page to write, *.html.")
_DIALOGUES = flags.DEFINE_integer(
  "dialogues",
  1_000,
  "Most dialogues of train that the student reads for the page.",
  lower_bound=1,
)
_TO_LABEL = flags.DEFINE_string(
  "to_label",
  "",
  "Also write the utterances to label next, as JSON lines with label null: fill"
  " them in and name the file with --config.dataset.gold.",
)


def render(data: dict) -> str:
  """Returns the page of what `report_data.collect` gives, in one text."""
  files = importlib.resources.files("ppl_jax") / "report_page"
  page, css, js = (
    (files / name).read_text("utf-8")
    for name in ("page.html", "page.css", "page.js")
  )
  # Inside a script element only "<" could end it.
  text = json.dumps(data, ensure_ascii=False, allow_nan=False)
  text = text.replace("<", "\\u003c")
  page = page.replace("/*css*/", css).replace("/*js*/", js)
  return page.replace("/*data*/", text)


def to_label(data: dict) -> str:
  """Returns the suggested utterances as JSON lines without labels."""
  return "".join(
    json.dumps(
      {
        "dialogue_id": one["id"],
        "utterance": one["utterance"],
        "text": one["text"],
        "label": None,
      },
      ensure_ascii=False,
    )
    + "\n"
    for one in data["suggested"]
  )


def main(argv):
  """Writes the page."""
  commands.refuse_arguments(argv)
  output = pathlib.Path(_OUTPUT.value).expanduser()
  path = pathlib.Path(_TO_LABEL.value).expanduser()
  with commands.user_errors():
    if _TO_LABEL.value and path.exists():
      raise ValueError(
        f"--to_label must name a new file, got {path}, which may hold labels."
        " Name another, or delete it."
      )
    for file in (output, path):
      file.parent.mkdir(parents=True, exist_ok=True)
    data = report_data.collect(
      pathlib.Path(_WORKDIR.value).expanduser(),
      dialogues=_DIALOGUES.value,
    )
    output.write_text(render(data), "utf-8")
    _LOG.info("%s: %.1f MB", output, output.stat().st_size / 1e6)
    if _TO_LABEL.value:
      path.write_text(to_label(data), "utf-8")
      _LOG.info("%s: %d utterances", path, len(data["suggested"]))


if __name__ == "__main__":
  commands.run(main, required=["workdir", "output"])
