"""Loads and checks everything a run needs, before any training starts."""

import dataclasses
import hashlib
import importlib
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import tqdm
from flax import nnx
from ml_collections import ConfigDict

from ppl_jax import (
  calibration,
  checkpoint,
  claim,
  objective,
  sharding,
  warm_start,
  words,
)
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import (
  mapped,
  pipeline,
  sampling,
  segments,
  tokenization,
  vote_columns,
)
from ppl_jax.data import scores as scores_lib
from ppl_jax.data import votes as votes_lib
from ppl_jax.models import bert, pretrained
from ppl_jax.student import Student

_LOG = logging.getLogger(__name__)
_TOKENIZER = "tokenizer.json"
_SIMULATED = "scores.parquet"
_DIALOGUES_AT_ONCE = 1_000
_DEV_SHARE = 0.2  # of the labelled dialogues, where validation has none
_FEW_TO_CHOOSE = 50  # labels


@dataclasses.dataclass(frozen=True)
class Inputs:
  """A run's data and its untrained, or partly trained, student.

  Attributes:
    config: with all that was left open filled in.
    mesh: the devices.
    student: how segments are made and logits are read.
    graphdef: the student's structure.
    params: its parameters at the start.
    objective: of the first phase; without a term where there is none.
    pretrained: whether `params` already went through the first phase.
    dialogues: each split's dialogues.
    splits: each split's arrays, as the student reads them.
    heldout_U: bool, scored utterances of train that only choices may use.
    gold_U: bool, utterances of train whose gold may be trained on.
    dev_split: where the labels are that choose the step of fine-tuning:
      validation; or train, where validation has none.
    dev_U: bool, those of its utterances whose gold may be used.
    finetunes: whether all of the student is trained on gold; if not, and there
      is gold, the scorer alone is fitted to that of train and dev.
    words_W: int32, the words that training can meet, of `words.find`.
  """

  config: ConfigDict
  mesh: jax.sharding.Mesh
  student: Student
  graphdef: nnx.GraphDef
  params: nnx.State
  objective: objective.Objective
  pretrained: bool
  dialogues: Mapping[str, Sequence[dialogues_lib.Dialogue]]
  splits: dict[str, pipeline.Materializer]
  heldout_U: np.ndarray
  gold_U: np.ndarray
  dev_split: str
  dev_U: np.ndarray
  finetunes: bool
  words_W: np.ndarray


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
  config = claim.with_shards(config, workdir)
  _check_values(config)
  claim.check_config(config, workdir)
  dataset = dialogues_lib.load_config(config.dataset)
  on_votes = objective.on_votes(config, dataset.classes, dataset.task)
  data = dialogues_lib.contents(config, dataset)
  claim.check_data(data, workdir)
  scores = _score_file(config, dataset, workdir)
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
    source = pathlib.Path(config.init_from).expanduser()
    _check_init_from(student, source)
    if scores:
      _check_held_out(config, data, source)
  splits = {}
  for name, split in dataset.splits.items():
    tokens = tokenization.tokenize_split(
      split, tokenizer, dataset.folder / f"tokens-{name}"
    )
    splits[name] = _materializer(
      split,
      tokens,
      scores if name == "train" else None,
      student,
      tokenizer,
      dataset.folder,
      prior=config.votes.prior,
    )
  train = splits["train"].split
  if scores and not train.scored_U.any():
    raise ValueError(
      "A score file must have a score for some utterance of train, got"
      f" {scores} without one. Make it of usable votes, or set"
      " --config.pretrain.objective=none to train on gold alone."
    )
  labelled = train.labelled_U
  if config.dataset.only_scored:
    is_scored = np.zeros(train.tokens.num_dialogues, bool)
    is_scored[train.dialogue_U[train.scored_U]] = True
    labelled = labelled & is_scored[train.dialogue_U]
  heldout_U = np.zeros(len(labelled), bool)
  if scores:
    heldout_U = _held_out(config, dataset, train, scores)
  splits["train"].release()
  gold = _gold(config, splits, labelled, votes=bool(on_votes.weights))
  _check_gold(
    mapped.take(train.gold_UxC, gold.train_U),
    dataset.classes,
    votes=bool(scores),
  )
  mesh = sharding.make_mesh(
    config.batch.shards,
    accumulation=config.batch.accumulation,
    data=config.mesh.data,
    fsdp=config.mesh.fsdp,
  )
  if jax.process_index() == 0:
    # Only now: a run that cannot start claims nothing.
    claim.write(config, data, workdir)
    student.save(workdir)
    tokenizer.save(workdir / _TOKENIZER)
  inputs = Inputs(
    config=config,
    mesh=mesh,
    student=student,
    graphdef=graphdef,
    params=params,
    objective=on_votes,
    pretrained=bool(config.init_from),
    dialogues=dataset.splits,
    splits=splits,
    heldout_U=heldout_U,
    gold_U=gold.train_U,
    dev_split=gold.dev_split,
    dev_U=gold.dev_U,
    finetunes=gold.finetunes,
    words_W=words.find(
      splits["train"], train.scored_U | labelled, encoder.vocab_size
    ),
  )
  _log_summary(inputs)
  return inputs


def _held_out(
  config: ConfigDict,
  dataset: dialogues_lib.Dataset,
  train: pipeline.SplitArrays,
  scores: pathlib.Path,
) -> np.ndarray:
  """Draws the scored utterances of train that only choices may use: bool [U].

  Raises:
    ValueError: nothing can be fitted on their scores.
  """
  scored_U = train.scored_U
  heldout_U = np.zeros(len(scored_U), bool)
  heldout_U[scored_U] = sampling.hold_out(
    train.dialogue_U[scored_U], config.pretrain.heldout_fraction, config.seed
  )
  heldout_UxC = mapped.take(train.scores_UxC, heldout_U)
  if not calibration.can_fit(heldout_UxC, dataset.task):
    raise ValueError(
      "The offsets are fitted on votes that are held out, got"
      f" {len(heldout_UxC)} utterances of them in {scores} with none that is"
      " given to some class and has a score for every class. Get more votes,"
      " or raise config.pretrain.heldout_fraction."
    )
  share_C = np.nansum(heldout_UxC, axis=0)
  unseen = [n for n, s in zip(dataset.classes, share_C, strict=True) if not s]
  if unseen:
    _LOG.warning(
      "No held-out vote is for %s, so that the offsets fitted on them keep the"
      " student from choosing it. Get more votes, or raise"
      " config.pretrain.heldout_fraction.",
      ", ".join(unseen),
    )
  return heldout_U


@dataclasses.dataclass(frozen=True)
class _Gold:
  """Which gold a run uses; see `Inputs`."""

  train_U: np.ndarray
  dev_split: str
  dev_U: np.ndarray
  finetunes: bool


def _gold(
  config: ConfigDict,
  splits: Mapping[str, pipeline.Materializer],
  labelled_U: np.ndarray,
  *,
  votes: bool,
) -> _Gold:
  """Draws the gold that is used, and says what becomes of it.

  Args:
    config: of the run.
    splits: all of the dataset's.
    labelled_U: bool, utterances of train whose gold may be drawn.
    votes: whether there is a first phase, on votes.

  Raises:
    ValueError: it leaves nothing to train on, or to choose by.
  """
  seed, fraction = config.seed, config.finetune.gold_fraction
  train = splits["train"].split
  dev = splits["validation"].split if "validation" in splits else None
  in_dev = dev is not None and dev.labelled_U.any()
  if fraction == 1 and votes and not labelled_U.any():
    gold_U = np.zeros_like(labelled_U)  # all that there are: none
  else:
    gold_U = sampling.draw_gold(labelled_U, train.dialogue_U, fraction, seed)
  dev_split, dev_U = "train", np.zeros_like(gold_U)
  if in_dev:
    dev_split = "validation"
    dev_U = sampling.draw_gold(
      dev.labelled_U, dev.dialogue_U, fraction, seed, "validation"
    )
  count = int(gold_U.sum() + dev_U.sum())
  finetunes = bool(count) and not (
    votes and (count < config.finetune.min_labels or not gold_U.any())
  )
  if finetunes and not in_dev:
    dev_U[gold_U] = _choose_by(train.dialogue_U[gold_U], seed)
    gold_U &= ~dev_U
  chosen_by = int(dev_U.sum())
  if finetunes and chosen_by < _FEW_TO_CHOOSE:
    _LOG.warning(
      "Only %d labels choose the best step of fine-tuning, and few may choose a"
      " bad one: label more of %s.",
      chosen_by,
      dev_split,
    )
  if count and not finetunes:
    _LOG.info(
      "%d labels are too few to train the whole student on: the scorer alone is"
      " fitted to them, by cross-validation (config.finetune.min_labels=%d).",
      count,
      config.finetune.min_labels,
    )
  return _Gold(gold_U, dev_split, dev_U, finetunes)


def _choose_by(dialogue_M: np.ndarray, seed: int) -> np.ndarray:
  """Draws dialogues whose labels choose, where validation has none.

  Args:
    dialogue_M: int, the dialogue of each label that may be used.
    seed: of the draw.

  Returns:
    bool [M], the labels that are not trained on.
  """
  if dialogue_M[0] == dialogue_M[-1]:
    raise ValueError(
      "Fine-tuning needs labels to choose its best step by, got no validation"
      " split with any, and those of one dialogue only in train. Label another"
      " dialogue, or set config.finetune.gold_fraction=0."
    )
  _LOG.info(
    "Validation has no labels: those of %.0f %% of the labelled dialogues of"
    " train choose the best step, and are not trained on.",
    100 * _DEV_SHARE,
  )
  return sampling.hold_out(dialogue_M, _DEV_SHARE, seed)


def _check_values(config: ConfigDict) -> None:
  """Raises ValueError for values that no run can have."""
  for key, value, allowed in (
    ("pairs.targets", config.pairs.targets, ("hard", "soft")),
    ("pairs.scope", config.pairs.scope, ("intra", "cross")),
    ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
    ("model.pooling", config.model.pooling, ("auto", *bert.POOLINGS)),
  ):
    if value not in allowed:
      raise ValueError(
        f"config.{key} must be one of {', '.join(allowed)}, got {value!r}."
        " Choose one of them."
      )
  for key, value in (
    ("pairs.alpha", config.pairs.alpha or 0.0),
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
  if config.votes.prior < 0:
    raise ValueError(
      "config.votes.prior must be a number of votes of at least 0, got"
      f" {config.votes.prior}. Correct it."
    )
  votes = objective.uses_votes(config.pretrain)
  if not votes and not config.finetune.gold_fraction:
    raise ValueError(
      "A run must train on something, got config.pretrain.objective='none' and"
      " config.finetune.gold_fraction=0. Set one of them."
    )


def _score_file(
  config: ConfigDict, dataset: dialogues_lib.Dataset, workdir: pathlib.Path
) -> pathlib.Path | None:
  """Returns the score file, which is one; None if the run needs none."""
  votes = objective.uses_votes(config.pretrain)
  if not votes and not config.dataset.only_scored:
    return None
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
  return scores_lib.ScoreFile(path).path


def _simulate(config, dataset, reader, workdir) -> pathlib.Path:
  """Writes a generated dataset's simulated votes and their score file."""
  workdir.mkdir(parents=True, exist_ok=True)
  votes, scores = workdir / "votes.jsonl", workdir / _SIMULATED
  train, metadata = dataset.splits["train"], None
  digest = hashlib.sha256()
  with (
    votes.open("wb") as f,
    scores_lib.Writer(scores, dataset.classes) as writer,
  ):
    for start in tqdm.trange(
      0, len(train), _DIALOGUES_AT_ONCE, desc="simulating votes", delay=3
    ):
      dialogues = train[start : start + _DIALOGUES_AT_ONCE]
      builder = vote_columns.Builder(
        dialogues, dataset.classes, config.votes.none_label
      )
      builder.source(votes)
      simulated = reader.votes(dialogues, dataset.classes, seed=config.seed)
      for number, vote in enumerate(simulated, start=1):
        line = json.dumps(vote).encode() + b"\n"
        f.write(line)
        digest.update(line)
        votes_lib.add_vote(builder, number, vote, config.votes.none_label)
      counted = votes_lib.to_scores(
        builder.build(), dataset=dataset.name, split="train"
      )
      writer.add(counted.rows)
      metadata = votes_lib.add_up(metadata, counted.metadata)
    source = {"file": votes.name, "sha256": digest.hexdigest()}
    metadata["votes"]["sources"] = [source]
    writer.finish(metadata)
  return scores


def _check_gold(
  gold_MxC: np.ndarray, classes: Sequence[str], *, votes: bool
) -> None:
  """Refuses gold that is all alike, or warns where votes teach as well."""
  if not len(gold_MxC) or (gold_MxC != gold_MxC[0]).any():
    return
  label = [c for c, of in zip(classes, gold_MxC[0], strict=True) if of]
  message = (
    f"Gold must tell utterances apart, got {len(gold_MxC)} of train in use, all"
    f" labelled {label}. Raise config.finetune.gold_fraction, or label others:"
    " [] says that none of the classes is right."
  )
  if not votes:
    raise ValueError(message)
  _LOG.warning("%s", message)


def _student(config, dataset, workdir):
  """Returns the tokenizer, the student's structure, parameters and encoder."""
  speaker_tokens = dict(config.segments.speaker_tokens)
  kwargs = {
    "dropout": config.model.dropout,
    "dtype": config.model.dtype,
    "seed": config.seed,
  }
  C = len(dataset.classes)
  pooling = warm_start.pooling(config, workdir)
  if config.init_from:
    source = pathlib.Path(config.init_from).expanduser()
    tokenizer = tokenization.StudentTokenizer.load(
      source / _TOKENIZER, speaker_tokens
    )
    encoder = Student.load(source).encoder
    model = pretrained.new_classifier(encoder, C, **kwargs)
  elif config.model.pretrained:
    folder = pretrained.resolve(config.model.pretrained)
    if not pooling and not pretrained.has_pooler(folder):
      pooling = "mean"
    tokenizer, _ = tokenization.from_folder(folder, speaker_tokens)
    model = pretrained.load_classifier(
      folder,
      C,
      tokenizer.vocab_size,
      num_layers=config.model.pretrained_layers,
      pooling=pooling,
      **kwargs,
    )
    encoder = model.bert.config
  else:
    if (workdir / _TOKENIZER).exists():  # of this run, which goes on
      tokenizer = tokenization.StudentTokenizer.load(
        workdir / _TOKENIZER, speaker_tokens
      )
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
      pooling=pooling or "pooler",
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


def _check_held_out(
  config: ConfigDict, data: Mapping[str, str], source: pathlib.Path
) -> None:
  """Says so where the other run held out other votes than this one does."""
  path = source / "config.json"
  if not path.exists():  # imported, and trained on no votes of ours
    return
  other = json.loads(path.read_text())
  there = json.loads((source / "data.json").read_text())
  settings = {
    "config.seed": (other["seed"], config.seed),
    "config.pretrain.heldout_fraction": (
      other["pretrain"]["heldout_fraction"],
      config.pretrain.heldout_fraction,
    ),
    "config.scores": (there.get("config.scores"), data.get("config.scores")),
  }
  differ = [key for key, (theirs, ours) in settings.items() if theirs != ours]
  if differ:
    _LOG.warning(
      "%s holds out other votes than this run, as its %s differs: some votes of"
      " heldout_votes in results.json may have been trained on there.",
      source,
      " and ".join(differ),
    )


def _materializer(
  split: Sequence[dialogues_lib.Dialogue],
  tokens: segments.UtteranceTokens,
  scores: pathlib.Path | None,
  student: Student,
  tokenizer: tokenization.StudentTokenizer,
  folder: pathlib.Path,
  *,
  prior: float,
) -> pipeline.Materializer:
  """Lays a split out; what has a row an utterance lies in files in a folder."""
  C = len(student.classes)
  first = np.asarray(tokens.first)
  if scores is None:
    scores_UxC = np.broadcast_to(np.float32(np.nan), (first[-1], C))
    valid_U = np.broadcast_to(np.float32(0), first[-1])
  else:
    scores_UxC, valid_U = scores_lib.lay_out(
      scores, split, first, student.classes, folder
    )
    valid_U = mapped.moved(valid_U, folder)
  labelled_U = np.zeros(first[-1], bool)
  with mapped.Rows(folder, np.uint8, (C,)) as gold:
    for d, dialogue in enumerate(split):
      gold.append(dialogue.gold)
      labelled_U[first[d] : first[d + 1]] = dialogue.labelled
    gold_UxC = gold.map()
  settings = tokens, student.window, student.max_length
  dialogue_U = np.repeat(np.arange(len(split), dtype=np.int32), np.diff(first))
  arrays = pipeline.SplitArrays(
    tokens=tokens,
    dialogue_U=mapped.moved(dialogue_U, folder),
    lengths_U=mapped.moved(segments.segment_lengths(*settings), folder),
    context_lengths_U=mapped.moved(segments.context_lengths(*settings), folder),
    scores_UxC=scores_UxC,
    valid_U=valid_U,
    gold_UxC=gold_UxC,
    labelled_U=labelled_U,
  )
  materializer = pipeline.Materializer(
    arrays,
    window=student.window,
    max_length=student.max_length,
    cls_id=tokenizer.cls_id,
    sep_id=tokenizer.sep_id,
    pad_id=tokenizer.pad_id,
    prior=prior,
    mean_C=arrays.mean_score_C if scores is not None and prior else None,
  )
  materializer.release()  # of the lengths above
  return materializer


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
    materialize.release()
  _LOG.info(
    "Gold in use: %d labels of train, and %d of %s to choose by.",
    inputs.gold_U.sum(),
    inputs.dev_U.sum(),
    inputs.dev_split,
  )
