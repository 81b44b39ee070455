"""Encoder parity with PyTorch on real weights and real segments.

    python -m benchmarks.parity --model=FOLDER [--input=dialogues.jsonl]

Runs segments of mixed length through our encoder and through transformers'
`BertModel`, in float32, and prints the largest difference of last hidden
states, pooled output and logits (with one scorer drawn from N(0, 1)), each
relative to its largest value. Exits with 1 where one is beyond 1e-4. Without
--input it takes dialogues of the quickstart's generator. A minute on 2 cores.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags

from ppl_jax.data import segments, tokenization
from ppl_jax.data.readers import jsonl, support
from ppl_jax.models import pretrained

_MODEL = flags.DEFINE_string(
  "model", None, "Hub name or folder of the encoder.", required=True
)
_INPUT = flags.DEFINE_string("input", "", "Dialogues, JSON lines.")
_SEGMENTS = flags.DEFINE_integer("segments", 64, "How many to compare.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 128, "Tokens of the longest.")

_TOLERANCE = 1e-4
_CLASSES = 4


def _dialogues():
  if not _INPUT.value:
    return support.read(None, "train", support.CLASSES, {})
  path = pathlib.Path(_INPUT.value)
  labels = set()
  with path.open("rb") as lines:
    for line in lines:
      for utterance in json.loads(line)["utterances"] if line.strip() else ():
        label = utterance.get("label") or []
        labels.update([label] if isinstance(label, str) else label)
  return jsonl.read_file(path, tuple(sorted(labels)), "multi_label")


def _segments(folder):
  """Returns tokens [N, T], length [N] and context length [N], all int32."""
  tokenizer, _ = tokenization.from_folder(folder, {})
  ids, sizes = [], []
  for dialogue in _dialogues():
    ids += tokenizer.encode_utterances(dialogue.speakers, dialogue.texts)
    sizes.append(len(dialogue.texts))
    if len(ids) > 50 * _SEGMENTS.value:
      break
  if len(ids) < _SEGMENTS.value:
    raise app.UsageError(
      f"--input must hold at least {_SEGMENTS.value} utterances, got"
      f" {len(ids)}; lower --segments or give more dialogues."
    )
  tokens = segments.UtteranceTokens(
    ids=np.concatenate(ids),
    offsets=np.cumsum([0, *map(len, ids)]),
    first=np.cumsum([0, *sizes]),
  )
  window, max_length = None, _MAX_LENGTH.value
  length = segments.segment_lengths(tokens, window, max_length)
  by_length = np.argsort(length, kind="stable")
  chosen = by_length[
    np.linspace(0, len(length) - 1, _SEGMENTS.value).astype(int)
  ]
  rows = np.full((len(chosen), length.max()), tokenizer.pad_id, np.int32)
  segments.write_segments(
    tokens,
    chosen,
    rows,
    window,
    max_length,
    tokenizer.cls_id,
    tokenizer.sep_id,
  )
  context = segments.context_lengths(tokens, window, max_length)
  return rows, length[chosen], context[chosen]


def _ours(folder, scorer, tokens, length, context):
  model = pretrained.load_classifier(
    folder, _CLASSES, 0, dropout=0.0, dtype="float32", seed=0
  )
  hidden, pooled = jax.jit(lambda m, *a: m(*a))(
    model.bert, tokens, length, context
  )
  model.scorer.kernel[...] = jnp.asarray(scorer)
  logits = jax.jit(lambda m, *a: m(*a))(model, tokens, length, context)
  return [np.asarray(x) for x in (hidden, pooled, logits)]


def _theirs(folder, scorer, tokens, length, context):
  transformers.utils.logging.disable_progress_bar()
  model = transformers.BertModel.from_pretrained(folder).float().eval()
  position = np.arange(tokens.shape[1])
  with torch.inference_mode():
    out = model(
      input_ids=torch.tensor(tokens).long(),
      attention_mask=torch.tensor(position < length[:, None]).long(),
      token_type_ids=torch.tensor(position >= context[:, None]).long(),
    )
    logits = out.pooler_output @ torch.tensor(scorer)
  return [x.numpy() for x in (out.last_hidden_state, out.pooler_output, logits)]


def main(argv):
  """Compares and prints."""
  if argv[1:]:
    raise app.UsageError(f"Takes flags only, got {' '.join(argv[1:])}.")
  folder = pretrained.resolve(_MODEL.value)
  tokens, length, context = _segments(folder)
  hidden_size = pretrained.read_config(folder)["hidden_size"]
  scorer = np.random.default_rng(0).normal(size=(hidden_size, _CLASSES))
  arguments = (folder, scorer.astype(np.float32), tokens, length, context)
  ours, theirs = _ours(*arguments), _theirs(*arguments)
  print(
    f"{len(tokens)} segments of {length.min()} to {length.max()} tokens,"
    f" median {int(np.median(length))}; float32"
  )
  valid = np.arange(tokens.shape[1]) < length[:, None]
  failed = False
  names = ("last hidden states", "pooled output", "logits, N(0,1) scorer")
  for name, a, b in zip(names, ours, theirs, strict=True):
    if a.ndim == 3:  # what lies on padding is nobody's
      a, b = a[valid], b[valid]
    relative = np.abs(a - b).max() / np.abs(b).max()
    good = bool(relative <= _TOLERANCE)  # NaN is not
    failed |= not good
    print(
      f"{name:22} {relative:.2e} of {np.abs(b).max():.3g}"
      f"  {'ok' if good else f'beyond {_TOLERANCE}'}"
    )
  sys.exit(int(failed))


if __name__ == "__main__":
  app.run(main)
