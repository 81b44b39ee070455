"""What a dataset holds, before anything is labelled or trained.

python -m ppl_jax.data.inspect --config=configs/dailydialog.py \
    --config.dataset.source=FOLDER --config.model.pretrained=FOLDER

Splits, classes, lengths, segments that config.segments cuts, texts that are
there twice with other labels or in two splits, and a few segments as the
student sees them. Tokens are the student's where config.model.pretrained is a
folder here, or empty; of a model that is yet to be downloaded, words.
"""

import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from absl import flags
from ml_collections import config_dict

from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import segments, tokenization

_EXAMPLES = flags.DEFINE_integer(
  "examples", 3, "Segments of train to show.", lower_bound=0
)

_NONE, _UNLABELLED = "(none of them)", "(not labelled)"
_LENGTHS = ("mean", "median", "p95", "max")


class _Split(NamedTuple):
  """What is known of a split; L utterances of D dialogues, C classes.

  Attributes:
    length_D: utterances of each dialogue.
    speakers_D: different speakers of each dialogue.
    words_L: parts between blanks.
    gold_LxC: multi-hot.
    labelled_L: where False, the row of gold means nothing.
    text_D, text_L: hashes of texts.
    label_L: hashes of gold.
  """

  length_D: np.ndarray
  speakers_D: np.ndarray
  words_L: np.ndarray
  gold_LxC: np.ndarray
  labelled_L: np.ndarray
  text_D: np.ndarray
  text_L: np.ndarray
  label_L: np.ndarray


def report(config: config_dict.ConfigDict, examples: int = 3) -> list[str]:
  """Returns the lines of the report on a config's dataset.

  Args:
    config: with `seed`, `dataset`, `segments` and `model` as in
      `configs/common.py`.
    examples: segments of train to show.

  Raises:
    ValueError: the data or the settings are not usable.
  """
  segments.check(config.segments.window, config.segments.max_length)
  dataset = dialogues_lib.load_config(config.dataset)
  splits = {
    name: _read(dialogues, name) for name, dialogues in dataset.splits.items()
  }
  tokenizer, unit = _tokenizer(config, dataset)
  tokens = {name: _tokens(tokenizer, dataset, name) for name in dataset.splits}
  return [
    f"{dataset.name}: {len(dataset.classes)} classes, {dataset.task}, prepared"
    f" in {dataset.folder}",
    *_sizes(splits),
    *_classes(splits, dataset.classes),
    *_segments(tokens, config.segments, unit),
    *_repeats(splits),
    *_leaks(splits),
    *_shown(dataset, tokens["train"], tokenizer, config, examples),
  ]


class _Words:
  """Stands for the student's tokenizer: a token a word."""

  cls_id, sep_id, pad_id = range(3)

  def __init__(self):
    self._words = ["[CLS]", "[SEP]", ""]
    self._ids: dict[str, int] = {}

  def encode_dialogues(self, dialogues) -> segments.UtteranceTokens:
    ids, offsets, first = [], [0], [0]
    for dialogue in dialogues:
      for speaker, text in zip(dialogue.speakers, dialogue.texts, strict=True):
        ids += [self._id(word) for word in (f"{speaker}:", *text.split())]
        offsets.append(len(ids))
      first.append(len(offsets) - 1)
    return segments.UtteranceTokens(*map(np.array, (ids, offsets, first)))

  def decode(self, ids: Sequence[int]) -> str:
    return " ".join(self._words[i] for i in ids)

  def _id(self, word: str) -> int:
    if word not in self._ids:
      self._ids[word] = len(self._words)
      self._words.append(word)
    return self._ids[word]


def _tokenizer(config, dataset):
  """Returns a tokenizer, and what to call its tokens."""
  speaker_tokens = dict(config.segments.speaker_tokens)
  folder = pathlib.Path(config.model.pretrained).expanduser()
  if not config.model.pretrained:
    texts = (t for d in dataset.splits["train"] for t in d.texts)
    size = config.model.vocab_size
    return tokenization.train_wordpiece(texts, size, speaker_tokens), "tokens"
  if folder.is_dir():
    return tokenization.from_folder(folder, speaker_tokens)[0], "tokens"
  return _Words(), "words"


def _tokens(tokenizer, dataset, name) -> segments.UtteranceTokens:
  split = dataset.splits[name]
  if isinstance(tokenizer, _Words):
    return tokenizer.encode_dialogues(split)
  # The files that training reads, under the same name.
  return tokenization.tokenize_split(
    split, tokenizer, dataset.folder / f"tokens-{name}"
  )


def _read(dialogues: Sequence[dialogues_lib.Dialogue], name: str) -> _Split:
  """Reads through a split once."""
  length, speakers, words, text_D, text_L = [], [], [], [], []
  label_L, gold, labelled = [], [], []
  for d in tqdm.trange(len(dialogues), desc=f"reading {name}", delay=3):
    dialogue = dialogues[d]
    length.append(len(dialogue.texts))
    speakers.append(len(set(dialogue.speakers)))
    words += [len(text.split()) for text in dialogue.texts]
    texts = [text.encode() for text in dialogue.texts]
    text_D.append(_hash(b"\0".join(texts)))
    text_L += map(_hash, texts)
    label_L += [_hash(row.tobytes()) for row in dialogue.gold]
    gold.append(dialogue.gold)
    labelled.append(dialogue.labelled)
  return _Split(
    length_D=np.array(length),
    speakers_D=np.array(speakers),
    words_L=np.array(words),
    gold_LxC=np.concatenate(gold),
    labelled_L=np.concatenate(labelled),
    text_D=np.array(text_D, np.uint64),
    text_L=np.array(text_L, np.uint64),
    label_L=np.array(label_L, np.uint64),
  )


def _hash(content: bytes) -> int:
  return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def _sizes(splits) -> Iterator[str]:
  yield "\nSplits: utterances a dialogue, words an utterance"
  rows = []
  for name, split in splits.items():
    length_D, speakers_D = split.length_D, split.speakers_D
    rows.append(
      [
        name,
        f"{len(length_D):,}",
        f"{len(split.words_L):,}",
        f"{split.labelled_L.sum():,}",
        f"{speakers_D.min()}-{speakers_D.max()}",
        f"{length_D.mean():,.2f} / {length_D.min():,} / {length_D.max():,}",
        _lengths(split.words_L),
      ]
    )
  yield from _table(
    [
      "split",
      "dialogues",
      "utterances",
      "labelled",
      "speakers",
      "mean / min / max",
      "words " + " / ".join(_LENGTHS),
    ],
    rows,
  )


def _classes(splits, classes: Sequence[str]) -> Iterator[str]:
  yield "\nClasses: utterances, and share of those labelled"
  rows = {name: [] for name in (*classes, _NONE, _UNLABELLED)}
  for split in splits.values():
    gold_NxC = split.gold_LxC[split.labelled_L]
    total = len(gold_NxC)
    counts = [*gold_NxC.sum(0, dtype=int), (gold_NxC.sum(1) == 0).sum()]
    for name, count in zip((*classes, _NONE), counts, strict=True):
      rows[name].append((int(count), _share(count, total)))
    rows[_UNLABELLED].append((int((~split.labelled_L).sum()), ""))
  for name in (_NONE, _UNLABELLED):
    if not any(count for count, _ in rows[name]):
      del rows[name]
  yield from _table(
    ["class", *splits],
    [
      [name, *(f"{count:,} {share:>7}" for count, share in cells)]
      for name, cells in rows.items()
    ],
  )


def _segments(tokens, settings, unit: str) -> Iterator[str]:
  window, max_length = settings.window, settings.max_length
  span = "all that fit" if window is None else window
  yield (
    f"\nSegments: of {span} utterances, at most {max_length} {unit}; shares of"
    " those that lose context, and the end of their own utterance"
  )
  if unit == "words":
    yield (
      "(a word a token, so that tokens are more: set config.model.pretrained to"
      " a folder that holds the student's tokenizer)"
    )
  rows = []
  for name, split in tokens.items():
    cut = segments.cut_counts(split, window, max_length)
    U = split.num_utterances
    rows.append(
      [
        name,
        _lengths(np.diff(split.offsets)),
        _lengths(segments.segment_lengths(split, window, max_length)),
        _share(cut.context, U),
        _share(cut.utterance, U),
      ]
    )
  measures = " / ".join(_LENGTHS)
  yield from _table(
    [
      "split",
      f"{unit} an utterance {measures}",
      f"a segment {measures}",
      "context cut",
      "utterance cut",
    ],
    rows,
  )


def _repeats(splits) -> Iterator[str]:
  yield (
    "\nRepeats: texts that are there more than once, over all splits; and those"
    " of them with more than one gold"
  )
  all_splits = list(splits.values())
  label_N, text_N, dialogue_N, place_N = (
    np.concatenate(parts)
    for parts in zip(*map(_labelled, all_splits), strict=True)
  )
  rows = []
  for what, texts, conflicts in (
    ("dialogues", "text_D", _conflicts(dialogue_N, place_N, label_N)),
    ("utterances", "text_L", _conflicts(text_N, 0 * place_N, label_N)),
  ):
    hashes = [getattr(split, texts) for split in all_splits]
    _, counts = np.unique(np.concatenate(hashes), return_counts=True)
    rows.append(
      [
        what,
        f"{counts.sum():,}",
        f"{len(counts):,}",
        f"{(counts > 1).sum():,}",
        f"{conflicts:,}",
        *(f"{len(own) - len(np.unique(own)):,}" for own in hashes),
      ]
    )
  yield from _table(
    [
      "texts of",
      "all",
      "different",
      "repeated",
      "in conflict",
      *(f"again in {name}" for name in splits),
    ],
    rows,
  )


def _labelled(split: _Split) -> tuple[np.ndarray, ...]:
  """Of labelled utterances: label, text, dialogue's text and place in it."""
  lengths_D = split.length_D
  first_D = np.cumsum(lengths_D) - lengths_D
  place_L = np.arange(lengths_D.sum()) - np.repeat(first_D, lengths_D)
  dialogue_L = np.repeat(split.text_D, lengths_D)
  columns = (split.label_L, split.text_L, dialogue_L, place_L.astype(np.uint64))
  return tuple(column[split.labelled_L] for column in columns)


def _conflicts(
  text_N: np.ndarray, place_N: np.ndarray, label_N: np.ndarray
) -> int:
  """How many texts have, in one place, more than one label."""
  triples = np.unique(np.stack([text_N, place_N, label_N]), axis=1)
  pairs, labels = np.unique(triples[:2], axis=1, return_counts=True)
  return len(np.unique(pairs[0, labels > 1]))


def _leaks(splits) -> Iterator[str]:
  names = list(splits)
  if len(names) < 2:
    return
  yield "\nLeaks: different texts of a split that an earlier split has too"
  rows = []
  for later in range(1, len(names)):
    for earlier in range(later):
      row = [f"{names[later]} in {names[earlier]}"]
      for texts in ("text_D", "text_L"):
        own, other = (
          np.unique(getattr(splits[names[i]], texts)) for i in (later, earlier)
        )
        shared = len(np.intersect1d(own, other, assume_unique=True))
        row.append(f"{shared:,} of {len(own):,} {_share(shared, len(own)):>7}")
      rows.append(row)
  yield from _table(["", "dialogues", "utterances"], rows)


def _shown(dataset, tokens, tokenizer, config, examples) -> Iterator[str]:
  count = min(examples, tokens.num_utterances)
  if not count:
    return
  yield "\nSegments of train, as the student sees them"
  window, max_length = config.segments.window, config.segments.max_length
  rng = np.random.default_rng(config.seed)
  chosen = np.sort(rng.choice(tokens.num_utterances, count, replace=False))
  lengths_U = segments.segment_lengths(tokens, window, max_length)
  rows = segments.padded_rows(
    tokens, chosen, (count, max_length), window, max_length, tokenizer
  )
  for u, row in zip(chosen.tolist(), rows, strict=True):
    d = int(np.searchsorted(tokens.first, u, side="right")) - 1
    dialogue, i = dataset.splits["train"][d], u - int(tokens.first[d])
    names = [dataset.classes[c] for c in np.flatnonzero(dialogue.gold[i])]
    label = ", ".join(names) or _NONE
    yield (
      f"{dialogue.dialogue_id}, utterance {i}:"
      f" {label if dialogue.labelled[i] else _UNLABELLED}"
    )
    yield "  " + tokenizer.decode(row[: lengths_U[u]].tolist())


def _lengths(values: np.ndarray) -> str:
  median, p95 = np.percentile(values, [50, 95])
  return f"{values.mean():.2f} / {median:.0f} / {p95:.0f} / {values.max():,}"


def _share(count: int, total: int) -> str:
  return f"{100 * count / total:.1f} %" if total else "-"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """Lines of a table, the first column to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  return [
    "  ".join(
      cell.ljust(width) if c == 0 else cell.rjust(width)
      for c, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in (header, *rows)
  ]


def main(argv: Sequence[str]) -> None:
  """Runs the command; see the module's text."""
  commands.refuse_arguments(argv)
  with commands.user_errors():
    lines = report(commands.CONFIG.value, _EXAMPLES.value)
    print("\n".join(lines))


if __name__ == "__main__":
  commands.run(main, required=["config"])
