"""The words that a run's training can meet, and their rows of the embeddings.

Most of a pretrained encoder's vocabulary does not occur in a corpus. A step
would clear, clip and apply the gradient of all rows of its table, which is half
of MiniLM's parameters. So training has a table of the words of its dialogues,
and the others keep the rows that they came with: a gradient they have none, and
decay alone would only make them forget.

Shapes: U utterances of a split, V words of the vocabulary, W those of training.
"""

import functools
import re

import jax
import numpy as np
from flax import nnx

from ppl_jax.data import pipeline

_TABLE = re.compile(r"\bembeddings\b.*\bword\b.*\bembedding\b")
# W is a multiple of this: of much the same words, much the same is compiled.
_MULTIPLE = 1_024
_STRETCH = 16_384  # utterances looked at at once


def find(
  materialize: pipeline.Materializer, used_U: np.ndarray, vocab_size: int
) -> np.ndarray:
  """Returns the words of the dialogues that training may use.

  Args:
    materialize: of the split.
    used_U: bool, utterances; all of their dialogues counts, as context.
    vocab_size: V.

  Returns:
    int32 [W], ascending ids; some that do not occur fill it up to a multiple,
    or to V.
  """
  tokens, dialogue_U = materialize.split.tokens, materialize.split.dialogue_U
  is_used_D = np.zeros(tokens.num_dialogues, bool)
  is_used_D[dialogue_U[used_U]] = True
  is_word_V = np.zeros(vocab_size, bool)
  is_word_V[[materialize.cls_id, materialize.sep_id, materialize.pad_id]] = True
  for start in range(0, tokens.num_utterances, _STRETCH):
    offsets = tokens.offsets[start : start + _STRETCH + 1]
    is_used = is_used_D[dialogue_U[start : start + _STRETCH]]
    ids = tokens.ids[offsets[0] : offsets[-1]]
    is_word_V[ids[np.repeat(is_used, np.diff(offsets))]] = True
    materialize.release()
  missing = -int(is_word_V.sum()) % _MULTIPLE
  is_word_V[np.flatnonzero(~is_word_V)[:missing]] = True
  return np.flatnonzero(is_word_V).astype(np.int32)


def rows(ids_W: np.ndarray, vocab_size: int) -> np.ndarray:
  """Returns int32 [V], the row of each word in a table of W.

  That of a word that is not there is W, which an embedding reads as NaN.
  """
  row_V = np.full(vocab_size, len(ids_W), np.int32)
  row_V[ids_W] = np.arange(len(ids_W))
  return row_V


def take(params: nnx.State, ids_W: np.ndarray) -> nnx.State:
  """Returns parameters whose table has the rows of W words alone."""

  def change(table):
    return _compiled(_take, table.sharding)(table, ids_W)

  return _change_table(params, change)


def put(params: nnx.State, small: nnx.State, ids_W: np.ndarray) -> nnx.State:
  """Returns `small` with the whole table: rows that it lacks are `params`'s.

  Args:
    params: parameters with all V rows.
    small: of `take`, trained since.
    ids_W: the words of `small`.
  """
  tables = []
  _change_table(params, tables.append)

  def change(some):
    return _compiled(_put, tables[0].sharding)(tables[0], some, ids_W)

  return _change_table(small, change)


def _take(table_VxH, ids_W):
  return table_VxH[ids_W]


def _put(table_VxH, some_WxH, ids_W):
  return table_VxH.at[ids_W].set(some_WxH, unique_indices=True)


@functools.cache
def _compiled(function, sharding):
  return jax.jit(function, out_shardings=sharding)


def _change_table(params, change):
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      change(leaf) if _TABLE.search(jax.tree_util.keystr(path)) else leaf
    ),
    params,
  )
