"""IEMOCAP's emotions: scenes that two actors play, six classes.

python -m labeling.main --config=configs/iemocap.py \
    --config.labeling.model=MODEL --votes=votes.sqlite --scores=scores.parquet
python -m ppl_jax.main --config=configs/iemocap.py \
    --config.scores=scores.parquet --workdir=runs/iemocap

Utterances of other codes than the six are context and have no label.
"""

from configs import common


def get_config():
  config = common.get_config()
  config.dataset.name = "iemocap"
  config.labeling.bank = "iemocap_emotion"
  config.segments.speaker_tokens.F = "[USR]"
  config.segments.speaker_tokens.M = "[SYS]"
  config.segments.window = 5
  config.segments.max_length = 96
  config.segments.buckets = (32, 48, 64, 80)
  config.finetune.epochs = 6
  config.finetune.min_steps = 60
  config.finetune.evals = 6
  config.model.pretrained = "TODBERT/TOD-BERT-JNT-V1"
  return config
