"""Student weights in and out, in Hugging Face's layout.

Our parameters have the tensors of `BertForSequenceClassification` one to one,
but for its pooler where the student has another pooling: only names differ, and
the scorer's kernel is transposed.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.typing import DTypeLike

from ppl_jax.models import bert, heads

_FILES = (
  "config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.txt",
)

_MODULES = {
  "bert.embeddings.word": "bert.embeddings.word_embeddings",
  "bert.embeddings.position": "bert.embeddings.position_embeddings",
  "bert.embeddings.token_type": "bert.embeddings.token_type_embeddings",
  "bert.embeddings.norm": "bert.embeddings.LayerNorm",
  "bert.pooler": "bert.pooler.dense",
  "scorer": "classifier",
}
_LAYER_MODULES = {
  "query": "attention.self.query",
  "key": "attention.self.key",
  "value": "attention.self.value",
  "attention_output": "attention.output.dense",
  "attention_norm": "attention.output.LayerNorm",
  "intermediate": "intermediate.dense",
  "output": "output.dense",
  "output_norm": "output.LayerNorm",
}
_WORDS = "bert.embeddings.word_embeddings.weight"
# Of a student without BERT's pooler: the file of its class, which the exported
# folder gets, and the model type that names it.
_CODE = "modeling_pooled_bert"
_MODEL_TYPE = "pooled_bert"
_POOLER = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")
_SCORER = ("classifier.weight", "classifier.bias")
_PROBLEM_TYPES = {
  "single_label": "single_label_classification",
  "multi_label": "multi_label_classification",
}


def _hf_name(path: tuple[str | int, ...]) -> str:
  """Name of a parameter's tensor in a Hugging Face checkpoint."""
  *module, leaf = path
  if module[:2] == ["bert", "layers"]:
    _, _, layer, name = module
    hf_module = f"bert.encoder.layer.{layer}.{_LAYER_MODULES[name]}"
  else:
    hf_module = _MODULES[".".join(map(str, module))]
  return f"{hf_module}.{'bias' if leaf == 'bias' else 'weight'}"


def hf_weights(model: heads.Classifier) -> dict[str, np.ndarray]:
  """Returns float32 tensors as `BertForSequenceClassification` names them."""
  weights = {}
  for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    value = np.asarray(param[...])
    # safetensors writes memory as it lies: a transposed view will not do.
    weights[_hf_name(path)] = np.ascontiguousarray(
      value.T if path[-1] == "kernel" else value
    )
  return weights


def save_classifier(
  folder: pathlib.Path,
  model: heads.Classifier,
  classes: Sequence[str],
  task: str,
) -> None:
  """Writes what `AutoModelForSequenceClassification.from_pretrained` reads.

  That is a `BertForSequenceClassification`. transformers has no such class for
  a student without BERT's pooler: the folder gets one of ours, which takes
  `trust_remote_code=True`, and a model type of its own. By that of a BERT it
  would be loaded without the flag, too, with a random pooler.

  Args:
    folder: gets model.safetensors, config.json and, if need be, the class.
    model: the student.
    classes: its C classes, in the order of its logits.
    task: 'single_label' (softmax, or a sigmoid for one class) or 'multi_label'
      (a sigmoid a class).
  """
  config = model.bert.config.to_hf() | {
    "architectures": ["BertForSequenceClassification"],
    "id2label": {str(i): name for i, name in enumerate(classes)},
    "label2id": {name: i for i, name in enumerate(classes)},
    # Of one class: what makes transformers take a sigmoid.
    "problem_type": _PROBLEM_TYPES[task if len(classes) > 1 else "multi_label"],
    "hidden_dropout_prob": model.bert.dropout,
    "classifier_dropout": model.bert.dropout,
    "attention_probs_dropout_prob": 0.0,
    "dtype": "float32",
  }
  if model.bert.config.pooling != "pooler":
    name = "PooledBertForSequenceClassification"
    config |= {
      "model_type": _MODEL_TYPE,
      "architectures": [name],
      "auto_map": {
        "AutoConfig": f"{_CODE}.PooledBertConfig",
        "AutoModelForSequenceClassification": f"{_CODE}.{name}",
      },
    }
    code = pathlib.Path(__file__).with_name(f"{_CODE}.py").read_bytes()
    (folder / f"{_CODE}.py").write_bytes(code)
  text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
  (folder / "config.json").write_text(text, encoding="utf-8")
  data = safetensors.numpy.save(hf_weights(model), metadata={"format": "pt"})
  (folder / "model.safetensors").write_bytes(data)


def read_classes(folder: pathlib.Path) -> tuple[tuple[str, ...], str]:
  """Reads what a fine-tuned folder says of its logits.

  Returns:
    The C classes in the order of the logits, and the task, 'single_label' or
    'multi_label'. One class with a sigmoid is a multi-label task to
    transformers, so that either may have been meant.

  Raises:
    ValueError: config.json is unusable, or asks for a regression.
  """
  config = read_config(folder)
  # transformers leaves the names out where they are its own.
  names = dict(config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"})
  classes = tuple(names.get(str(i)) for i in range(len(names)))
  if not all(isinstance(c, str) for c in classes) or (
    len(set(classes)) != len(classes)
  ):
    raise ValueError(
      "id2label must give distinct names to 0, 1, 2 and so on, got"
      f" {names!r} in {folder}. Correct it."
    )
  problem = config.get("problem_type") or (
    "regression" if len(classes) == 1 else _PROBLEM_TYPES["single_label"]
  )
  tasks = {problem: task for task, problem in _PROBLEM_TYPES.items()}
  if problem not in tasks:
    raise ValueError(
      f"problem_type must be {' or '.join(tasks)}, got {problem!r} in"
      f" {folder}. Give the folder of a classifier."
    )
  return classes, tasks[problem]


def resolve(name: str) -> pathlib.Path:
  """Returns the local folder of an encoder, downloading it where needed.

  Args:
    name: a folder in Hugging Face layout, or a model's name on the hub.

  Raises:
    ValueError: there is no such folder, and the hub could not be reached, or
      knows no such model.
  """
  folder = pathlib.Path(name).expanduser()
  if folder.is_dir():
    return folder
  if name.startswith((".", "/", "~")) or name.count("/") > 1:
    raise ValueError(
      f"The pretrained encoder must be an existing folder, got {name}; correct "
      "the path."
    )
  import huggingface_hub

  try:
    folder = huggingface_hub.snapshot_download(
      name, allow_patterns=[*_FILES, "model.safetensors"]
    )
    if not (pathlib.Path(folder) / "model.safetensors").exists():
      folder = huggingface_hub.snapshot_download(
        name, allow_patterns=[*_FILES, "pytorch_model.bin"]
      )
  except Exception as error:  # Each HTTP library and version has its own.
    raise ValueError(
      f"The pretrained encoder must be a local folder or a model on the "
      f"Hugging Face hub, got {name}: no such folder, and the download failed "
      f"({type(error).__name__}: {error}). Check the name and the network, or "
      "give a folder with config.json, tokenizer files and model.safetensors. "
      "An empty name makes a small encoder from scratch."
    ) from error
  return pathlib.Path(folder)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """Reads `config.json` of a folder in Hugging Face layout.

  The model type of a student without BERT's pooler becomes that of a BERT.

  Raises:
    ValueError: the file is missing or is not a JSON object.
  """
  path = pathlib.Path(folder) / "config.json"
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise ValueError(
      f"A pretrained encoder's folder must hold config.json, got {folder} "
      "without it; give a folder in Hugging Face layout."
    ) from error
  except ValueError as error:
    raise ValueError(
      f"config.json must be JSON, got {path}: {error}; download it again."
    ) from error
  if not isinstance(config, dict):
    raise ValueError(
      f"config.json must be a JSON object, got {path} with a "
      f"{type(config).__name__}; download it again."
    )
  if config.get("model_type") == _MODEL_TYPE:
    config["model_type"] = "bert"
  return config


def read_weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a folder in Hugging Face layout.

  Reads `model.safetensors`, else `pytorch_model.bin`, which needs torch.

  Returns:
    Arrays by their name in `BertForSequenceClassification`: encoder tensors
    start with "bert." and norms have weight and bias, whatever class or
    version wrote the file.

  Raises:
    ValueError: there is no weight file, it cannot be read, or it is a `.bin`
      and torch is not installed.
  """
  folder = pathlib.Path(folder)
  safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
  if safe.exists():
    try:
      raw = safetensors.numpy.load_file(safe)
    except safetensors.SafetensorError as error:
      raise ValueError(
        f"The weights must be a whole safetensors file, got {safe}: {error}; "
        "copy or download it again."
      ) from error
  elif pickled.exists():
    raw = _read_pickled(pickled)
  else:
    raise ValueError(
      "A pretrained encoder's folder must hold model.safetensors or "
      f"pytorch_model.bin, got {folder} with neither; give a folder in Hugging "
      "Face layout."
    )
  weights = {}
  for name, value in raw.items():
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
      name = f"bert.{name}"  # saved from BertModel
    weights[name] = value
  return weights


def has_pooler(folder: pathlib.Path) -> bool:
  """Says whether the weights of a folder include BERT's pooler."""
  return all(name in read_weights(folder) for name in _POOLER)


def _read_pickled(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"Reading pytorch_model.bin needs PyTorch, got {path} and no torch; "
      "pip install torch, or put model.safetensors beside it."
    ) from error
  try:
    tensors = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # EOFError, RuntimeError, UnpicklingError, ...
    raise ValueError(
      f"The weights must be readable by PyTorch, got {path}: {error}; copy or "
      "download it again."
    ) from error
  return {
    name: tensor.float().numpy()
    for name, tensor in tensors.items()
    if tensor.is_floating_point()
  }


def new_classifier(
  config: bert.BertConfig,
  num_classes: int,
  *,
  dropout: float,
  dtype: DTypeLike,
  seed: int,
) -> heads.Classifier:
  """Returns a student with random weights.

  They are drawn with NumPy, which compiles nothing: matrices are normal with
  the config's `initializer_range`, biases 0, norms 1.
  """
  graphdef, params = abstract_classifier(
    config, num_classes, dropout=dropout, dtype=dtype
  )
  rng = np.random.default_rng(seed)

  def fresh(leaf, shape):
    if len(shape) > 1:
      return rng.normal(0, config.initializer_range, shape)
    return np.ones(shape) if leaf == "scale" else np.zeros(shape)

  params = [
    (path, param.replace(jnp.array(fresh(path[-1], param.shape), jnp.float32)))
    for path, param in nnx.to_flat_state(params)
  ]
  return nnx.merge(graphdef, nnx.from_flat_state(params))


def abstract_classifier(
  config: bert.BertConfig,
  num_classes: int,
  *,
  dropout: float,
  dtype: DTypeLike,
) -> tuple[nnx.GraphDef, nnx.State]:
  """Returns a student's structure, and its parameters without values."""

  def build():
    return heads.Classifier(
      config, num_classes, dropout=dropout, dtype=dtype, rngs=nnx.Rngs(0)
    )

  return nnx.split(nnx.eval_shape(build), nnx.Param)


def load_classifier(
  folder: pathlib.Path,
  num_classes: int,
  vocab_size: int,
  *,
  dropout: float,
  dtype: DTypeLike,
  seed: int,
  num_layers: int = 0,
  pooling: str = "",
  fresh_scorer: bool = True,
) -> heads.Classifier:
  """Returns a student that starts from the weights of a local folder.

  Tokens added to the vocabulary get new random embeddings after the folder's.
  A scorer in the folder is taken if it has `num_classes` outputs, in the
  folder's order; otherwise the scorer is new, unless that is forbidden.

  Args:
    folder: in Hugging Face layout, see `resolve`.
    num_classes: C.
    vocab_size: number of tokens of the tokenizer; a folder with more embeddings
      keeps them all.
    dropout: rate, see `functional.dropout`.
    dtype: compute dtype.
    seed: of everything that is not in the folder.
    num_layers: takes so many of the folder's layers, the first; 0 takes all.
    pooling: one of `bert.POOLINGS`; "" takes what the folder's config.json
      says, which is BERT's own pooler where it says nothing.
    fresh_scorer: starts a scorer where the folder has none that fits; without
      it, that is an error.

  Raises:
    ValueError: the folder lacks files, layers or tensors, or tensors have other
      shapes than its config.json says (all are named).
  """
  config = bert.BertConfig.from_hf(read_config(folder))
  if not 0 <= num_layers <= config.num_hidden_layers:
    raise ValueError(
      "config.model.pretrained_layers must be from 0, for all, to the"
      f" {config.num_hidden_layers} layers of {folder}, got {num_layers}."
      " Lower it."
    )
  if num_layers:
    config = dataclasses.replace(config, num_hidden_layers=num_layers)
  if pooling:
    config = dataclasses.replace(config, pooling=pooling)
  weights = read_weights(folder)
  rng = np.random.default_rng(seed)
  H = config.hidden_size

  def fresh(*shape):
    values = rng.normal(0, config.initializer_range, shape)
    return values.astype(np.float32)

  has_scorer = weights.get(_SCORER[0], fresh(0)).shape == (num_classes, H)
  if fresh_scorer and not has_scorer:
    weights[_SCORER[0]] = fresh(num_classes, H)
    weights[_SCORER[1]] = np.zeros(num_classes, np.float32)

  grown = dataclasses.replace(
    config, vocab_size=max(config.vocab_size, vocab_size)
  )
  graphdef, abstract = abstract_classifier(
    grown, num_classes, dropout=dropout, dtype=dtype
  )
  problems, params = [], []
  for path, param in nnx.to_flat_state(abstract):
    name, kernel = _hf_name(path), path[-1] == "kernel"
    shape = param.shape[::-1] if kernel else param.shape
    if name == _WORDS:
      shape = (config.vocab_size, H)
    if name not in weights:
      problems.append(f"{name}: missing, needs {list(shape)}")
      continue
    value = weights[name]
    if value.shape != shape:
      problems.append(
        f"{name}: has {list(value.shape)}, needs {list(shape)} by config.json"
      )
      continue
    if name == _WORDS and grown != config:
      value = np.concatenate(
        [value, fresh(grown.vocab_size - config.vocab_size, H)]
      )
    # A copy, since the train step donates its buffers.
    value = jnp.array(value.T if kernel else value, jnp.float32)
    params.append((path, param.replace(value)))
  if problems:
    hint = (
      " Encoders trained on masked words alone have no pooler:"
      " --config.model.pooling=mean needs none."
      if any(problem.startswith(_POOLER) for problem in problems)
      else ""
    )
    raise ValueError(
      f"The weights must have every tensor of a BERT encoder, got in {folder}: "
      f"{'; '.join(problems)}. Give a folder whose weights and config.json "
      f"belong together.{hint}"
    )
  return nnx.merge(graphdef, nnx.from_flat_state(params))
