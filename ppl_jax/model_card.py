"""The README.md of an exported student, filled from its run."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import huggingface_hub

from ppl_jax import objective, optim, parity
from ppl_jax.data import scores as scores_lib
from ppl_jax.student import Student

_TITLES = {
  "test": "test",
  "dev": "dev, the share of it that choices saw",
  "dev_full": "dev, all of it",
  "heldout_votes": "held-out votes of train",
}
_USES = {
  "single": "exactly one of these classes",
  "one": "whether it is of this class",
  "multi": "any number of these classes",
}
# What the scorer reads.
_POOLINGS = {
  "pooler": "",
  "cls": " on the hidden state of [CLS]",
  "mean": " on the mean of the last utterance's hidden states",
}
# How PyTorch loads a student with BERT's pooler, and one without.
_PLAIN = """tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER).eval()"""
_POOLED = """# Runs modeling_pooled_bert.py of the folder, as transformers
# has no BERT classifier that pools so.
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(
  FOLDER, trust_remote_code=True
).eval()"""
# Of each format: what is imported, how it is loaded, how ids become logits.
_CODE = {
  "pytorch": (
    """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer""",
    f"""{_PLAIN}
token_id = tokenizer.convert_tokens_to_ids


def ids(text):
  # split_special_tokens: "[SEP]" that somebody typed is text.
  return tokenizer(
    text, add_special_tokens=False, split_special_tokens=True
  )["input_ids"]""",
    """  with torch.inference_mode():
    z = model(
      input_ids=torch.tensor([tokens]), token_type_ids=torch.tensor([types])
    ).logits[0].numpy()""",
  ),
  "onnx": (
    """import onnxruntime  # 1.23 or later
import tokenizers""",
    """tokenizer = tokenizers.Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
tokenizer.encode_special_tokens = True  # "[SEP]" that somebody typed is text
model = onnxruntime.InferenceSession(
  f"{FOLDER}/model.onnx", providers=["CPUExecutionProvider"]
)
token_id = tokenizer.token_to_id


def ids(text):
  return tokenizer.encode(text, add_special_tokens=False).ids""",
    """  z = model.run(["logits"], {
    "input_ids": np.array([tokens]),
    "attention_mask": np.ones((1, len(tokens)), np.int64),
    "token_type_ids": np.array([types]),
  })[0][0]""",
  ),
  "stablehlo": (
    """import jax.export
import tokenizers""",
    """tokenizer = tokenizers.Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
tokenizer.encode_special_tokens = True  # "[SEP]" that somebody typed is text
with open(f"{FOLDER}/model.stablehlo", "rb") as f:
  model = jax.jit(jax.export.deserialize(bytearray(f.read())).call)
token_id = tokenizer.token_to_id


def ids(text):
  return tokenizer.encode(text, add_special_tokens=False).ids""",
    """  # Padded tokens [N, T], lengths [N] and lengths of the contexts [N].
  # Each shape is compiled once: pad to few lengths.
  z = np.asarray(
    model(
      np.int32([tokens]), np.int32([len(tokens)]), np.int32([types.count(0)])
    )
  )[0]""",
  ),
}


def write(
  folder: pathlib.Path,
  workdir: pathlib.Path,
  student: Student,
  kind: str,
  found: Mapping[str, parity.Parity],
) -> None:
  """Writes README.md, with what the run's folder still tells.

  Args:
    folder: of the export.
    workdir: the run's folder.
    student: of the run.
    kind: 'pytorch', 'onnx' or 'stablehlo'.
    found: how what was exported compares to JAX.
  """
  config = _json(workdir / "config.json")
  results = _json(workdir / "results.json")
  name = config.get("dataset", {}).get("name", "") or "dialogue"
  parts = [
    f"---\n{_metadata(name, config, results, kind)}\n---",
    _about(name, student, kind),
    _segments(student, kind),
    _data(config, results),
    _scores(workdir, config),
    _training(config, student),
    _metrics(results),
    _parity(kind, found),
  ]
  text = "\n\n".join(part for part in parts if part) + "\n"
  (folder / "README.md").write_text(text, encoding="utf-8")


def _json(path: pathlib.Path) -> dict[str, Any]:
  return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _metadata(name, config, results, kind) -> str:
  """The YAML that model hubs read."""
  test = results.get("test", {})
  metrics = {"accuracy": "accuracy", "macro_f1": "f1"}
  base = config.get("model", {}).get("pretrained", "")
  on_hub = (
    base.count("/") == 1
    and base[0] not in "./~"
    and not pathlib.Path(base).exists()
    and not config["init_from"]
  )
  data = huggingface_hub.ModelCardData(
    library_name={"pytorch": "transformers"}.get(kind, kind),
    pipeline_tag="text-classification",
    tags=["dialogue", "utterance-classification", "ppl_jax"],
    base_model=base if on_hub else None,
    model_name=f"{name} student",
    eval_results=[
      huggingface_hub.EvalResult(
        task_type="text-classification",
        dataset_type=name,
        dataset_name=name,
        dataset_split="test",
        metric_type=kind_of,
        metric_name=metric.replace("_", " "),
        metric_value=round(test[metric], 4),
      )
      for metric, kind_of in metrics.items()
      if metric in test
    ]
    or None,
  )
  return data.to_yaml()


def _about(name: str, student: Student, kind: str) -> str:
  use = "multi" if student.task == "multi_label" else "single"
  if use == "single" and len(student.classes) == 1:
    use = "one"
  classes = "\n".join(f"- `{c}`" for c in student.classes)
  encoder = student.encoder
  return f"""# {name}: classifier of dialogue utterances

Says of an utterance, from it and those before it, {_USES[use]}:

{classes}

A BERT encoder of {encoder.num_hidden_layers} layers, {encoder.hidden_size} \
wide, with a linear scorer{_POOLINGS[encoder.pooling]}, made with
ppl_jax ([the method](https://arxiv.org/abs/2503.05620)). Format: {kind}."""


def _segments(student: Student, kind: str) -> str:
  imports, load, run = _CODE[kind]
  if student.encoder.pooling != "pooler":
    load = load.replace(_PLAIN, _POOLED)
  window = student.window
  spans = (
    "all utterances before it"
    if window is None
    else f"the {window - 1} utterances before it"
  )
  speakers = "".join(
    f"\n- An utterance of `{role}` is led by the token `{token}`."
    for role, token in student.speaker_tokens.items()
  )
  is_softmax = student.task == "single_label" and len(student.classes) > 1
  squash = (
    "p = np.exp(z - z.max())\n  p /= p.sum()"
    if is_softmax
    else "p = 1 / (1 + np.exp(-z))"
  )
  kept = "dialogue" if window is None else f"dialogue[-{window}:]"
  return f'''## How text must be segmented

The model reads `[CLS] context [SEP] utterance [SEP]` and labels the utterance.

- The context is {spans}, of the same dialogue, oldest first.{speakers}
- An utterance of any other speaker is led by the speaker's name and a colon.
- At most {student.max_length} tokens, with [CLS] and [SEP]: the context loses \
its oldest tokens
  first; an utterance too long by itself loses its end.
- Token type 0 is `[CLS] context [SEP]`, token type 1 is `utterance [SEP]`.

In code, for the last utterance of a dialogue:

```python
import numpy as np
{imports}

FOLDER = "."
CLASSES = {list(student.classes)!r}
SPEAKERS = {dict(student.speaker_tokens)!r}
ROOM = {student.max_length} - 3  # tokens beside [CLS], [SEP] and [SEP]

{load}


def utterance_ids(speaker, text):
  token = SPEAKERS.get(speaker)
  return ([token_id(token)] if token else ids(f"{{speaker}}:")) + ids(text)


def probabilities(dialogue):
  """Class probabilities of the last of [(speaker, text), ...]."""
  *before, own = [utterance_ids(*utterance) for utterance in {kept}]
  own = own[:ROOM]
  context = sum(before, [])
  context = context[max(0, len(context) + len(own) - ROOM):]
  tokens = [token_id("[CLS]"), *context, token_id("[SEP]")]
  types = [0] * len(tokens) + [1] * (len(own) + 1)
  tokens += [*own, token_id("[SEP]")]
{run}
  {squash}
  return dict(zip(CLASSES, p.tolist()))


print(probabilities([("A", "Is it raining?"), ("B", "Yes, take a coat.")]))
```'''


def _data(config, results) -> str:
  if not config:
    return "## Data\n\nNot known: the model was imported, not trained here."
  dataset = config["dataset"]
  lines = [f"- Dataset: `{dataset['name']}`."]
  if dataset["options"]:
    lines.append(
      f"- Options of its reader: `{json.dumps(dataset['options'])}`."
    )
  if dataset["only_scored"]:
    lines.append("- Trained on those dialogues only that have votes.")
  if dataset["drop_leaks"]:
    lines.append(
      "- Without those train dialogues whose texts are in dev or test."
    )
  gold = results.get("gold_labels")
  if gold:
    lines.append(
      f"- Gold labels used: {gold['train']:,} of train, {gold['dev']:,} of dev"
      f" (share of all: {results['gold_fraction']:g})."
    )
  return "\n".join(["## Data", "", *lines])


def _scores(workdir: pathlib.Path, config) -> str:
  """What the score file says of the votes."""
  if not config:
    return ""
  if not objective.uses_votes(config["pretrain"]):
    where = "in this run" if config["init_from"] else "in training"
    return f"## Votes\n\nNone {where}, which saw gold labels alone."
  path = pathlib.Path(config["scores"] or workdir / "scores.parquet")
  try:
    metadata = scores_lib.ScoreFile(path).metadata
  except (ValueError, OSError):
    return f"## Votes\n\nOf a score file that is gone, `{path.name}`."
  rows = [
    f"- {key}: {value if isinstance(value, str) else f'`{json.dumps(value)}`'}"
    for key, value in metadata.items()
    if key != "classes" and value not in ([], {}, "")
  ]
  about = f"From the metadata of the score file, `{path.name}`:"
  return "\n".join(["## Votes", "", about, "", *rows])


def _training(config, student: Student) -> str:
  dropout = (
    f"- Dropout in training: {student.dropout:g} on hidden states, 0 on"
    " attention."
  )
  if not config:
    return f"## Training\n\n{dropout}"
  base, before = config["model"]["pretrained"], config["init_from"]
  start = "random weights"
  if before:
    start = f"the first phase of another run, `{pathlib.Path(before).name}`"
  elif base:
    start = f"`{'/'.join(pathlib.Path(base).parts[-2:])}`"
  first, second = config["pretrain"], config["finetune"]
  votes = objective.uses_votes(first)
  softmax = student.task == "single_label" and len(student.classes) > 1

  def rate(phase):
    value = phase["optimizer"]["learning_rate"]
    return optim.learning_rate(value, student.encoder.hidden_size)

  lines = [f"- Started from {start}.", dropout]
  if votes and not before:
    lines.append(
      "- First phase, on votes:"
      f" {objective.describe(first, softmax)}, {first['epochs']:g} epochs,"
      f" learning rate {rate(first):.3g}; then offsets and temperature fitted"
      " on held-out votes and folded into the scorer."
    )
  if second["gold_fraction"]:
    what = "gold and votes" if votes and second["vote_weight"] else "gold"
    lines.append(
      f"- Second phase, on {what}: {second['epochs']:g} epochs, learning rate"
      f" {rate(second):.3g}; then a temperature fitted on"
      " dev and folded into the scorer."
    )
  lines.append(f"- Computed in {student.dtype}, seed {config['seed']}.")
  return "\n".join(["## Training", "", *lines])


def _metrics(results) -> str:
  tables = {
    split: {
      name: value
      for name, value in results[split].items()
      if isinstance(value, float) and name != "metric"
    }
    for split in _TITLES
    if split in results
  }
  if not tables:
    return ""
  lines = ["## Metrics", "", "Of the run, before the export.", ""]
  lines += ["| split | metric | value |", "|---|---|---|"]
  for split, values in tables.items():
    title = _TITLES[split]
    lines += [
      f"| {title} | {name.replace('_', ' ')} | {value:.4f} |"
      for name, value in values.items()
    ]
  classes = results.get("test", {}).get("per_class", {})
  if classes:
    lines += ["", "| class, on test | precision | recall | F1 | support |"]
    lines.append("|---|---|---|---|---|")
    for name, v in classes.items():
      shares = (f"{v[k]:.4f}" for k in ("precision", "recall", "f1"))
      lines.append(f"| {name} | {' | '.join(shares)} | {v['support']} |")
  return "\n".join(lines)


def _parity(kind: str, found: Mapping[str, parity.Parity]) -> str:
  rows = [
    f"| {name} | {p.segments:,} of {p.source} | {p.largest:.2g} |"
    f" {p.changed:,} |"
    for name, p in found.items()
  ]
  return "\n".join(
    [
      "## Equal to what was trained",
      "",
      f"The {kind} model against the trained one, in JAX with float32:",
      "",
      "| weights | segments | largest logit difference | labels changed |",
      "|---|---|---|---|",
      *rows,
    ]
  )
