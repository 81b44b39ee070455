"""Labels dialogues with a trained student: whole files, or a live stream.

python -m ppl_jax.predict --workdir=DIR --input=dialogues.jsonl \
    --output=labels.jsonl
python -m ppl_jax.predict --workdir=DIR --input=-

DIR is a run of ppl_jax.main, or an export with model.onnx, which onnxruntime
runs. A file is JSON lines, a dialogue each, as for training; or CSV with the
columns dialogue_id, speaker and text, by its suffix. Either may be gzipped, by
a further .gz. The output has a line an utterance: dialogue_id, utterance,
label, probabilities (calibrated). Killed and given again, the command goes on
from OUTPUT.partial. A file that is there is never written over.

With --input=- each line of the standard input is one utterance,
{"dialogue_id": ..., "speaker": ..., "text": ...}, of any of many dialogues,
and is answered at once. A line that cannot be used is answered with
{"error": ..., "line": ...}.
"""

import gc
import logging
import pathlib
import sys

from absl import flags

from ppl_jax import commands, files, live, memory
from ppl_jax.predictor import Predictor

_LOG = logging.getLogger("ppl_jax.predict")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run or an export.")
_INPUT = flags.DEFINE_string("input", None, "File of dialogues; - for live.")
_OUTPUT = flags.DEFINE_string(
  "output", None, "File of predictions, CSV by its suffix or JSON lines."
)
_ABSTAIN_BELOW = flags.DEFINE_float(
  "abstain_below",
  0.0,
  "Give the label null where the student is less sure than this probability.",
)
_IDLE_MINUTES = flags.DEFINE_float(
  "idle_minutes", 30.0, "Forget a live dialogue after so long a silence."
)
_THREADS = flags.DEFINE_integer(
  "threads", None, "Cores to use; all if not given.", lower_bound=1
)
_CACHE = flags.DEFINE_string(
  "cache", "~/.cache/ppl_jax/xla", "Where compiled programs are kept."
)


def main(argv):
  """Runs prediction with the flags."""
  commands.refuse_arguments(argv)
  memory.one_arena()
  with commands.user_errors():
    if (_INPUT.value == "-") == bool(_OUTPUT.value):
      raise ValueError(
        "--output must be given with a file and not with --input=-, which"
        f" answers on the standard output; got --input={_INPUT.value} and"
        f" --output={_OUTPUT.value}. Change one of them."
      )
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    if _INPUT.value == "-":
      commands.exit_on_interrupt()
      _stream(workdir)
    else:
      commands.exit_on_interrupt(
        "Interrupted. Give the same command again to go on."
      )
      _file(workdir)


def _file(workdir: pathlib.Path) -> None:
  source, output = (
    pathlib.Path(name).expanduser() for name in (_INPUT.value, _OUTPUT.value)
  )
  files.check_output(output, source)
  summary = files.check(source)
  about = {
    "input": summary.sha256,
    "student": files.sha256_of_student(workdir),
    "abstain_below": _ABSTAIN_BELOW.value,
  }
  with files.Partial(output, about) as partial:
    if partial.utterances:
      _LOG.info("Goes on after %d utterances.", partial.utterances)
    predictor = _predictor(workdir, is_live=False)
    memory.keep_freed()
    files.predict(predictor, source, summary, partial)
  _LOG.info("%d predictions in %s", summary.utterances, output)


def _stream(workdir: pathlib.Path) -> None:
  predictor = _predictor(workdir, is_live=True)
  memory.keep_freed()
  gc.collect()
  gc.freeze()  # or a collection walks over all that was ever imported
  _LOG.info("Ready: one JSON line an utterance.")
  live.run(predictor, sys.stdin.buffer, sys.stdout.buffer)


def _predictor(workdir: pathlib.Path, *, is_live: bool) -> Predictor:
  if not (workdir / "model.onnx").exists():
    from ppl_jax import jax_backend

    jax_backend.use_cache(pathlib.Path(_CACHE.value).expanduser())
  return Predictor.from_workdir(
    workdir,
    threads=_THREADS.value,
    abstain_below=_ABSTAIN_BELOW.value,
    idle_minutes=_IDLE_MINUTES.value,
    live=is_live,
    batch=False,
  )


if __name__ == "__main__":
  commands.run(main, required=["workdir", "input"])
