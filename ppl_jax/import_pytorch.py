"""Makes a fine-tuned PyTorch classifier a workdir: the way back of an export.

python -m ppl_jax.import_pytorch --folder=FOLDER --workdir=DIR
python -m ppl_jax.import_pytorch --folder=FOLDER --workdir=DIR \
    --config=configs/mine.py

FOLDER holds a BertForSequenceClassification in Hugging Face layout, or what an
export of ours is that pools otherwise. How its segments are made is read from
its student.json, which an export has; without one, or to have it otherwise,
name the config that it will be trained with.

    python -m ppl_jax.predict --workdir=DIR --input=dialogues.jsonl \
        --output=labels.jsonl
    python -m ppl_jax.main --config=configs/mine.py --config.init_from=DIR \
        --workdir=RUN     # fine-tunes it on gold

To train it on votes again, give the folder to --config.model.pretrained.
"""

import logging
import pathlib

from absl import flags

from ppl_jax import commands, importer

_LOG = logging.getLogger("ppl_jax.import_pytorch")
_FOLDER = flags.DEFINE_string("folder", None, "The classifier's folder.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to be; must not exist.")
_CLASSES = flags.DEFINE_list(
  "classes", None, "Names of the logits in order, instead of the folder's."
)


def main(argv):
  """Runs the import with the flags."""
  commands.refuse_arguments(argv)
  with commands.user_errors():
    importer.import_pytorch(
      pathlib.Path(_FOLDER.value).expanduser(),
      pathlib.Path(_WORKDIR.value).expanduser(),
      config=commands.CONFIG.value,
      classes=_CLASSES.value,
    )
  _LOG.info(
    "%s can be predicted from, and trained on by --config.init_from=%s",
    _WORKDIR.value,
    _WORKDIR.value,
  )


if __name__ == "__main__":
  commands.run(main, required=["folder", "workdir"])
