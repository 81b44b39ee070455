"""MRDA's five basic tags: meetings of about 1,400 utterances.

python -m labeling.main --config=configs/mrda.py \
    --config.labeling.model=MODEL --votes=votes.sqlite --scores=scores.parquet
python -m ppl_jax.main --config=configs/mrda.py \
    --config.scores=scores.parquet --workdir=runs/mrda

The split and text of the SILICONE benchmark instead:
--config.dataset.options.edition=silicone
"""

from configs import common


def get_config():
  config = common.get_config()
  config.dataset.name = "mrda"
  config.dataset.options.edition = "corpus"  # or "silicone"
  config.labeling.bank = "mrda"
  # A meeting takes no more memory than a chat: a segment sees a few utterances
  # and a batch holds groups of them. Speakers are led by their codes.
  config.segments.window = 4
  config.segments.max_length = 64
  config.segments.buckets = (24, 32, 40, 48, 56)
  config.finetune.epochs = 4
  config.finetune.min_steps = 60
  config.finetune.evals = 5
  config.model.pretrained = "TODBERT/TOD-BERT-JNT-V1"
  return config
