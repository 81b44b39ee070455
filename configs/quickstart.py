"""Support dialogues made here, with simulated votes: no download at all.

python -m ppl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs import common


def get_config():
  config = common.get_config()
  config.dataset.name = "support"
  config.dataset.options.seed = 0
  config.dataset.options.train = 500  # dialogues
  config.dataset.options.validation = 200
  config.dataset.options.test = 200

  config.labeling.bank = "support"

  config.segments.window = 2
  config.segments.max_length = 48
  config.segments.buckets = (16, 24, 32)
  config.segments.speaker_tokens.customer = "[USR]"
  config.segments.speaker_tokens.agent = "[SYS]"
  # From scratch, small: all of it takes a minute or two on two cores.
  config.model.vocab_size = 1_200
  config.model.hidden_size = 128
  config.model.num_layers = 2

  config.batch.segments = 64
  config.pretrain.epochs = 12
  config.pretrain.optimizer.learning_rate = 1e-3
  config.finetune.gold_fraction = 0.05
  config.finetune.epochs = 20
  config.finetune.optimizer.learning_rate = 5e-4
  return config
