"""DailyDialog's intents: is an utterance a question or a directive, or neither?

One class with a sigmoid. Votes on the four acts serve: one for a question or a
directive is one for an intent, any other is for none. So their shares add up.

python -m labeling.scores --config=configs/dailydialog_intent.py \
    --votes=votes.jsonl.gz --scores=scores.parquet
python -m ppl_jax.main --config=configs/dailydialog_intent.py \
    --config.scores=scores.parquet --workdir=runs/dailydialog_intent
"""

from configs import dailydialog


def get_config():
  config = dailydialog.get_config()
  config.dataset.options.labels = "intent"
  config.labeling.bank = "intent"
  config.votes.counts_as.question = "intent"
  config.votes.counts_as.directive = "intent"
  config.votes.counts_as.inform = "none"
  config.votes.counts_as.commissive = "none"
  return config
