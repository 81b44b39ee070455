"""MELD's sentiment: scenes of a television comedy, three classes.

python -m labeling.main --config=configs/meld.py \
    --config.labeling.model=MODEL --votes=votes.sqlite --scores=scores.parquet
python -m ppl_jax.main --config=configs/meld.py \
    --config.scores=scores.parquet --workdir=runs/meld

Its seven emotions instead: --config.dataset.options.labels=emotion
--config.labeling.bank=generic
"""

from configs import common


def get_config():
  config = common.get_config()
  config.dataset.name = "meld"
  config.dataset.options.labels = "sentiment"  # or "emotion"
  config.labeling.bank = "meld_sentiment"
  # Several speakers, led by their names.
  config.segments.window = 3
  config.segments.max_length = 64
  config.segments.buckets = (24, 32, 40, 48, 56)
  config.finetune.epochs = 4
  config.finetune.min_steps = 60
  config.finetune.evals = 5
  config.model.pretrained = "TODBERT/TOD-BERT-JNT-V1"
  return config
