"""dyda_da: DailyDialog's acts, in lower case, as SILICONE publishes them.

python -m labeling.main --config=configs/dyda_da.py \
    --config.labeling.model=MODEL --votes=votes.sqlite --scores=scores.parquet
python -m ppl_jax.main --config=configs/dyda_da.py \
    --config.scores=scores.parquet --workdir=runs/dyda_da

Votes on DailyDialog are not votes on this text. --config.dataset.drop_leaks
takes those train dialogues out that validation or test repeat.
"""

from configs import dailydialog


def get_config():
  config = dailydialog.get_config()
  config.dataset.name = "dyda_da"
  del config.dataset.options.labels
  return config
