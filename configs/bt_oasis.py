"""BT-Oasis: calls to a telephone company's operators, 42 acts.

python -m labeling.main --config=configs/bt_oasis.py \
    --config.labeling.model=MODEL --votes=votes.sqlite --scores=scores.parquet
python -m ppl_jax.main --config=configs/bt_oasis.py \
    --config.scores=scores.parquet --workdir=runs/bt_oasis

The validation and test of the SILICONE benchmark instead:
--config.dataset.options.edition=silicone
"""

from configs import common


def get_config():
  config = common.get_config()
  config.dataset.name = "bt_oasis"
  config.dataset.options.edition = "corpus"  # or "silicone"
  config.labeling.bank = "bt_oasis"
  config.segments.speaker_tokens.b = "[USR]"  # who calls
  config.segments.speaker_tokens.a = "[SYS]"  # the operator
  config.segments.window = 4
  config.segments.max_length = 96
  config.segments.buckets = (24, 32, 48, 64, 80)
  config.finetune.epochs = 6
  config.finetune.min_steps = 60
  config.finetune.evals = 6
  config.model.pretrained = "TODBERT/TOD-BERT-JNT-V1"
  return config
