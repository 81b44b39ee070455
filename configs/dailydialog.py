"""DailyDialog's dialogue acts: LLM votes first, then a share of the gold.

python -m labeling.scores --config=configs/dailydialog.py \
    --votes=votes.jsonl.gz --scores=scores.parquet
python -m ppl_jax.main --config=configs/dailydialog.py \
    --config.scores=scores.parquet --workdir=runs/dailydialog
"""

from configs import common


def get_config():
  config = common.get_config()
  config.dataset.name = "dailydialog"
  config.dataset.options.labels = "act"  # or "emotion"
  config.labeling.bank = "dailydialog_act"
  # The reader names the two speakers, who take turns, A and B.
  config.segments.speaker_tokens.A = "[USR]"
  config.segments.speaker_tokens.B = "[SYS]"
  config.segments.window = 3
  config.segments.max_length = 64
  config.segments.buckets = (24, 32, 40, 48, 56)
  config.finetune.epochs = 4
  config.finetune.min_steps = 60
  config.finetune.evals = 5
  config.model.pretrained = "TODBERT/TOD-BERT-JNT-V1"
  return config
