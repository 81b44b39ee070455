"""Your own dialogues: a folder with train.jsonl, validation.jsonl, test.jsonl.

python -m ppl_jax.main --config=configs/jsonl.py --workdir=runs/mine \
    --config.dataset.source=FOLDER --config.scores=scores.parquet \
    --config.dataset.classes="('question', 'request', 'other')"
"""

from configs import common


def get_config():
  config = common.get_config()
  config.dataset.name = "jsonl"
  config.finetune.gold_fraction = 1.0  # all labels that are given
  config.model.pretrained = "TODBERT/TOD-BERT-JNT-V1"
  return config
