"""Loads and checks everything a run needs, before any training starts."""

import dataclasses
import importlib
import json
import logging
import pathlib
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from ppl_jax import checkpoint, sharding
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import pipeline, sampling, segments, tokenization
from ppl_jax.data import scores as scores_lib
from ppl_jax.data import votes as votes_lib
from ppl_jax.models import bert, pretrained
from ppl_jax.student import Student

_LOG = logging.getLogger(__name__)
_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_SIMULATED = "scores.parquet"


@dataclasses.dataclass(frozen=True)
class Inputs:
  """A run's data and its untrained, or partly trained, student.

  Attributes:
    config: with all that was left open filled in.
    mesh: the devices.
    student: how segments are made and logits are read.
    graphdef: the student's structure.
    params: its parameters at the start.
    pretrained: whether `params` already went through the first phase.
    splits: each split's arrays, as the student reads them.
    heldout_U: bool, scored utterances of train that only choices may use.
    gold_U: bool, utterances of train whose gold may be used.
    dev_U: bool, the like of validation.
  """

  config: ConfigDict
  mesh: jax.sharding.Mesh
  student: Student
  graphdef: nnx.GraphDef
  params: nnx.State
  pretrained: bool
  splits: dict[str, pipeline.Materializer]
  heldout_U: np.ndarray
  gold_U: np.ndarray
  dev_U: np.ndarray


def prepare(config: ConfigDict, workdir: pathlib.Path) -> Inputs:
  """Reads and checks a run's inputs, and claims its workdir.

  Args:
    config: of `configs/`.
    workdir: the run's folder; made if missing.

  Several processes call this one after another, the first one first: it writes
  the files, and what it prepares is there for those on the same machine.

  Raises:
    ValueError: something that the user gave is wrong; the message says what,
      where, and what to do.
  """
  config = _with_shards(config, workdir)
  _check_values(config)
  _check_workdir(config, workdir)
  dataset = dialogues_lib.load_config(config.dataset)
  scores = _read_scores(config, dataset, workdir)
  tokenizer, graphdef, params, encoder = _student(config, dataset, workdir)
  segments.check(
    config.segments.window,
    config.segments.max_length,
    encoder.max_position_embeddings,
  )
  student = Student.from_config(
    config, classes=dataset.classes, task=dataset.task, encoder=encoder
  )
  if config.init_from:
    _check_init_from(student, pathlib.Path(config.init_from))
  splits = {}
  for name, split in dataset.splits.items():
    tokens = tokenization.tokenize_split(
      split, tokenizer, dataset.folder / f"tokens-{name}"
    )
    splits[name] = _materializer(
      split, tokens, scores if name == "train" else None, student, tokenizer
    )
  train = splits["train"].split
  seed, fraction = config.seed, config.finetune.gold_fraction
  labelled = train.labelled_U
  if config.dataset.only_scored:
    scored_dialogues = np.unique(train.dialogue_U[train.scored_U])
    labelled = labelled & np.isin(train.dialogue_U, scored_dialogues)
  heldout_U = np.zeros(len(labelled), bool)
  if scores is not None:
    scored = np.flatnonzero(train.scored_U)
    heldout_U[scored] = sampling.hold_out(
      train.dialogue_U[scored], config.pretrain.heldout_fraction, seed
    )
  dev_U = np.zeros(0, bool)
  if "validation" in splits:
    dev = splits["validation"].split
    dev_U = sampling.draw_gold(dev.labelled_U, dev.dialogue_U, fraction, seed)
  elif fraction:
    raise ValueError(
      "Fine-tuning needs a validation split with labels to choose the best"
      f" step by, got a {dataset.name} dataset without one. Add it, or set"
      " config.finetune.gold_fraction=0."
    )
  gold_U = sampling.draw_gold(labelled, train.dialogue_U, fraction, seed)
  mesh = sharding.make_mesh(
    config.batch.shards,
    accumulation=config.batch.accumulation,
    data=config.mesh.data,
    fsdp=config.mesh.fsdp,
  )
  if jax.process_index() == 0:
    _claim(config, workdir)  # only now: a run that cannot start claims nothing
    student.save(workdir)
    tokenizer.save(workdir / _TOKENIZER)
  inputs = Inputs(
    config=config,
    mesh=mesh,
    student=student,
    graphdef=graphdef,
    params=params,
    pretrained=bool(config.init_from),
    splits=splits,
    heldout_U=heldout_U,
    gold_U=gold_U,
    dev_U=dev_U,
  )
  _log_summary(inputs)
  return inputs


def _with_shards(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
  """Returns the config with the number of shards that the run started with."""
  config = config.copy_and_resolve_references()
  if not config.batch.shards:
    started = workdir / _CONFIG
    if started.exists():
      config.batch.shards = json.loads(started.read_text())["batch"]["shards"]
    else:
      config.batch.shards = jax.device_count() * config.batch.accumulation
  return config


def _check_workdir(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises ValueError where the workdir holds a run of another config."""
  path = workdir / _CONFIG
  if not path.exists():
    return
  ours = dict(_flat(json.loads(config.to_json())))
  theirs = dict(_flat(json.loads(path.read_text())))
  unset = "(not set)"
  differ = [
    f"{key}: {theirs.get(key, unset)!r} there, {ours.get(key, unset)!r} here"
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key, unset) != theirs.get(key, unset)
  ]
  if differ:
    raise ValueError(
      f"A workdir belongs to one config, got {workdir} with a run of"
      f" another: {'; '.join(differ)}. Name another --workdir, or delete"
      " this one."
    )


def _claim(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Writes the config that the workdir belongs to from now on."""
  workdir.mkdir(parents=True, exist_ok=True)
  temporary = workdir / f".{_CONFIG}"
  values = json.loads(config.to_json())
  temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
  temporary.replace(workdir / _CONFIG)


def _flat(values: dict, prefix: str = "") -> Iterable[tuple[str, object]]:
  for key, value in values.items():
    if isinstance(value, dict) and value:
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _check_values(config: ConfigDict) -> None:
  """Raises ValueError for values that no run can have."""
  for key, value, allowed in (
    (
      "pretrain.objective",
      config.pretrain.objective,
      ("pairwise", "pointwise", "joint", "none"),
    ),
    ("pairs.targets", config.pairs.targets, ("hard", "soft")),
    ("pairs.scope", config.pairs.scope, ("intra", "cross")),
    ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
  ):
    if value not in allowed:
      raise ValueError(
        f"config.{key} must be one of {', '.join(allowed)}, got {value!r}."
        " Choose one of them."
      )
  for key, value in (
    ("pairs.alpha", config.pairs.alpha),
    ("finetune.gold_fraction", config.finetune.gold_fraction),
  ):
    if not 0 <= value <= 1:
      raise ValueError(
        f"config.{key} must lie in [0, 1], got {value}. Give a share."
      )
  shards = config.batch.shards
  for key, value in (
    ("batch.segments", config.batch.segments),
    ("batch.eval_segments", config.batch.eval_segments),
    ("finetune.batch_segments", config.finetune.batch_segments),
    ("finetune.vote_segments", config.finetune.vote_segments),
  ):
    if value < 1 or value % shards:
      raise ValueError(
        f"config.{key} must be a positive multiple of config.batch.shards,"
        f" {shards}, got {value}. Change one of them."
      )
  # Found here and not by the plan of fine-tuning, after the first phase.
  rows = min(config.batch.segments, config.finetune.vote_segments) // shards
  if not 1 <= config.pairs.group_size <= rows:
    raise ValueError(
      "config.pairs.group_size must be from 1 to the rows that"
      " config.batch.segments and config.finetune.vote_segments leave a shard,"
      f" {rows}, got {config.pairs.group_size}. Lower it, or raise those."
    )
  if config.pretrain.objective == "none" and not config.finetune.gold_fraction:
    raise ValueError(
      "A run must train on something, got config.pretrain.objective='none' and"
      " config.finetune.gold_fraction=0. Set one of them."
    )


def _read_scores(
  config: ConfigDict, dataset: dialogues_lib.Dataset, workdir: pathlib.Path
) -> list[np.ndarray | None] | None:
  """Returns each training dialogue's scores, None where it has none."""
  if config.pretrain.objective == "none" and not config.dataset.only_scored:
    return None
  train = dataset.splits["train"]
  path = config.scores
  if not path and (workdir / _SIMULATED).exists() and jax.process_index():
    path = workdir / _SIMULATED  # of the first process
  if not path:
    reader = importlib.import_module(
      f"ppl_jax.data.readers.{config.dataset.name}"
    )
    if not hasattr(reader, "votes"):
      raise ValueError(
        "Training on votes needs a score file, got config.scores=''. Make one"
        " with `python -m labeling.scores` and name it with --config.scores,"
        " or set --config.pretrain.objective=none to train on gold alone."
      )
    path = _simulate(config, dataset, reader, workdir)
  scored = scores_lib.read_scores(path)
  return scores_lib.match(scored, train, dataset.classes)


def _simulate(config, dataset, reader, workdir) -> pathlib.Path:
  """Writes a generated dataset's simulated votes and their score file."""
  workdir.mkdir(parents=True, exist_ok=True)
  votes, scores = workdir / "votes.jsonl", workdir / _SIMULATED
  train = dataset.splits["train"]
  with votes.open("w") as f:
    for vote in reader.votes(train, dataset.classes, seed=config.seed):
      f.write(json.dumps(vote) + "\n")
  counted = votes_lib.votes_to_scores(
    votes,
    train,
    dataset.classes,
    config.votes.none_label,
    dataset=dataset.name,
    split="train",
  )
  scores_lib.write_scores(scores, counted)
  return scores


def _student(config, dataset, workdir):
  """Returns the tokenizer, the student's structure, parameters and encoder."""
  speaker_tokens = dict(config.segments.speaker_tokens)
  kwargs = {
    "dropout": config.model.dropout,
    "dtype": config.model.dtype,
    "seed": config.seed,
  }
  C = len(dataset.classes)
  if config.init_from:
    source = pathlib.Path(config.init_from)
    tokenizer = tokenization.StudentTokenizer.load(
      source / _TOKENIZER, speaker_tokens
    )
    encoder = Student.load(source).encoder
    model = pretrained.new_classifier(encoder, C, **kwargs)
  elif config.model.pretrained:
    folder = pretrained.resolve(config.model.pretrained)
    tokenizer, _ = tokenization.from_folder(folder, speaker_tokens)
    model = pretrained.load_classifier(
      folder, C, tokenizer.vocab_size, **kwargs
    )
    encoder = model.bert.config
  else:
    texts = (t for d in dataset.splits["train"] for t in d.texts)
    tokenizer = tokenization.train_wordpiece(
      texts, config.model.vocab_size, speaker_tokens
    )
    encoder = bert.BertConfig(
      vocab_size=tokenizer.vocab_size,
      hidden_size=config.model.hidden_size,
      num_hidden_layers=config.model.num_layers,
      num_attention_heads=config.model.num_heads,
      intermediate_size=4 * config.model.hidden_size,
      max_position_embeddings=max(512, config.segments.max_length),
      initializer_range=config.model.initializer_range,
    )
    model = pretrained.new_classifier(encoder, C, **kwargs)
  model.bert.remat = config.model.remat
  graphdef, params = nnx.split(model, nnx.Param)
  if config.init_from:
    params = checkpoint.load_params(source, "pretrained", params)
  return tokenizer, graphdef, params, encoder


def _check_init_from(student: Student, source: pathlib.Path) -> None:
  other = dataclasses.asdict(Student.load(source))
  differ = [
    f"{key}: {other[key]!r} there, {value!r} here"
    for key, value in dataclasses.asdict(student).items()
    if key not in ("dropout", "dtype") and other[key] != value
  ]
  if differ:
    raise ValueError(
      "config.init_from must name a run whose student reads the same segments"
      f" and classes, got {source} with {'; '.join(differ)}. Use the same"
      " dataset, segments and model settings."
    )


def _materializer(
  split: Sequence[dialogues_lib.Dialogue],
  tokens: segments.UtteranceTokens,
  scores: list[np.ndarray | None] | None,
  student: Student,
  tokenizer: tokenization.StudentTokenizer,
) -> pipeline.Materializer:
  C = len(student.classes)
  U = tokens.num_utterances
  first = np.asarray(tokens.first)
  arrays = pipeline.SplitArrays(
    tokens=tokens,
    dialogue_U=np.repeat(np.arange(len(split)), np.diff(first)),
    lengths_U=segments.segment_lengths(
      tokens, student.window, student.max_length
    ),
    context_lengths_U=segments.context_lengths(
      tokens, student.window, student.max_length
    ),
    scores_UxC=np.full((U, C), np.nan, np.float32),
    gold_UxC=np.zeros((U, C), np.uint8),
    labelled_U=np.zeros(U, bool),
  )
  for d, dialogue in enumerate(split):
    here = slice(first[d], first[d + 1])
    arrays.gold_UxC[here] = dialogue.gold
    arrays.labelled_U[here] = dialogue.labelled
    if scores is not None and scores[d] is not None:
      arrays.scores_UxC[here] = scores[d]
  return pipeline.Materializer(
    arrays,
    window=student.window,
    max_length=student.max_length,
    cls_id=tokenizer.cls_id,
    sep_id=tokenizer.sep_id,
    pad_id=tokenizer.pad_id,
  )


def _log_summary(inputs: Inputs) -> None:
  for name, materialize in inputs.splits.items():
    split = materialize.split
    cut = segments.cut_counts(
      split.tokens, inputs.student.window, inputs.student.max_length
    )
    _LOG.info(
      "%s: %d dialogues, %d utterances, %d labelled, %d scored; %d segments"
      " lose context, %d lose text",
      name,
      split.tokens.num_dialogues,
      split.tokens.num_utterances,
      split.labelled_U.sum(),
      split.scored_U.sum(),
      cut.context,
      cut.utterance,
    )
  _LOG.info(
    "Gold in use: %d labels of train, %d of validation.",
    inputs.gold_U.sum(),
    inputs.dev_U.sum(),
  )
