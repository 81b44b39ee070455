"""A tiny corpus of our own as JSON lines, with scores, for tests."""

import json
import pathlib

import numpy as np

from configs import jsonl
from ppl_jax.data import dialogues, scores

CLASSES = ("ask", "tell", "thank")
_TEXTS = (
  ("Where is the {} now?", "Can you see the {}?", "Is the {} open?"),
  ("The {} is on the table.", "I left the {} outside.", "It was the {}."),
  ("Thanks for the {}.", "Thank you, that helps.", "Many thanks, bye."),
)
_WORDS = ("lamp", "boat", "letter", "garden", "ticket", "violin")


def lines(split: str, count: int, seed: int, classes=CLASSES) -> list[dict]:
  """Dialogues of 1 to 5 utterances in the JSON-lines schema."""
  rng = np.random.default_rng(seed)
  out = []
  for d in range(count):
    utterances = []
    for i in range(rng.integers(1, 6)):
      c = rng.integers(len(_TEXTS))
      text = rng.choice(_TEXTS[c]).format(rng.choice(_WORDS))
      label = CLASSES[c] if CLASSES[c] in classes else []
      utterances.append(
        {"speaker": "AB"[i % 2], "text": str(text), "label": label}
      )
    out.append({"dialogue_id": f"{split}-{d}", "utterances": utterances})
  return out


def write_split(folder: pathlib.Path, split: str, dialogue_lines) -> None:
  """Writes one split's file."""
  text = "".join(json.dumps(line) + "\n" for line in dialogue_lines)
  (folder / f"{split}.jsonl").write_text(text)


def write(folder: pathlib.Path, classes=CLASSES, train=30) -> pathlib.Path:
  """Writes train, validation and test; returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  for seed, (split, count) in enumerate(
    (("train", train), ("validation", 12), ("test", 10))
  ):
    write_split(folder, split, lines(split, count, seed, classes))
  return folder


def write_scores(path: pathlib.Path, dataset: dialogues.Dataset) -> None:
  """Writes a score file of five votes an utterance, four in five right."""
  rng = np.random.default_rng(0)
  rows = {}
  for dialogue in dataset.splits["train"]:
    valid = np.full(dialogue.gold.shape, 5, np.uint32)
    votes = rng.binomial(5, np.where(dialogue.gold, 0.8, 0.1))
    rows[dialogue.dialogue_id] = scores.ScoredDialogue(
      votes=votes.astype(np.uint32),
      valid=valid,
      text_sha256=dialogue.text_sha256(),
    )
  metadata = {
    "dataset": "jsonl",
    "split": "train",
    "models": [],
    "prompts": [],
    "sampling": {},
    "requests": 0,
    "aggregation": "shares",
  }
  scores.write_scores(path, scores.Scores(dataset.classes, metadata, rows))


def config(folder: pathlib.Path, classes=CLASSES, **dataset):
  """A config that trains on `write`'s files within seconds, with scores."""
  values = jsonl.get_config()
  values.dataset.source = str(folder)
  values.dataset.data_dir = str(folder / "prepared")
  values.dataset.classes = tuple(classes)
  values.dataset.update(dataset)
  values.segments.max_length = 24
  values.segments.buckets = ()
  values.model.pretrained = ""
  values.model.vocab_size = 200
  values.model.hidden_size = 16
  values.model.num_layers = 1
  values.model.num_heads = 2
  # What tests of warm starts and baselines turn on.
  values.model.pooling = "pooler"
  values.model.warm_start = False
  values.baselines = False
  values.batch.segments = 16
  values.batch.eval_segments = 16
  values.pairs.group_size = 4
  values.pretrain.epochs = 2
  values.pretrain.min_steps = 0
  values.pretrain.evals = 2
  values.finetune.gold_fraction = 0.3
  values.finetune.min_labels = 0
  values.finetune.batch_segments = 8
  values.finetune.vote_segments = 8
  values.finetune.epochs = 1
  values.finetune.min_steps = 6
  values.finetune.evals = 2
  loaded = dialogues.load(
    "jsonl",
    source=str(folder),
    data_dir=values.dataset.data_dir,
    classes=tuple(classes),
    task=values.dataset.task,
  )
  path = folder / f"scores-{len(classes)}.parquet"
  write_scores(path, loaded)
  values.scores = str(path)
  return values
