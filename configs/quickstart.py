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
  config.segments.max_length = 64
  config.model.pretrained = ""
  config.finetune.gold_fraction = 0.05
  return config
