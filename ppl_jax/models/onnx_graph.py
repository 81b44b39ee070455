"""The student as an ONNX graph of standard operators.

Written node by node from the weights, so that it needs neither PyTorch nor a
tracer, runs on any runtime, and computes in the last layer only the token that
is pooled. onnxruntime fuses what can be fused by itself, when it loads it.

Shape letters: N segments, T tokens, Q tokens that ask, H hidden size, F
feed-forward size, C classes.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ppl_jax.models import bert

# The first with Attention, which takes an eighth less time of two cores that
# share no cache than its parts, and is a twentieth faster where they do.
_OPSET = 23
_IR_VERSION = 11  # of that operator set; older runtimes refuse newer files


def build(
  weights: Mapping[str, np.ndarray], config: bert.BertConfig
) -> onnx.ModelProto:
  """Returns a model of `BertForSequenceClassification`, without dropout.

  Its inputs are input_ids, attention_mask (1 for tokens, 0 for padding) and
  token_type_ids, int64 [batch, length] of any batch and of any length that the
  position table holds; its output is logits, float32 [batch, C].

  Args:
    weights: float32, as `pretrained.hf_weights` returns them.
    config: sizes of the encoder.
  """
  graph = _Graph(weights, config)
  mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
  mask = graph.node("Sub", graph.floats(1), mask)
  mask = graph.node("Mul", mask, graph.floats(-1e30))
  mask_Nx1x1xT = graph.node("Unsqueeze", mask, graph.ints(1, 2))
  # onnxruntime's Attention wants a row for each token that asks.
  one = graph.ints(1)
  length = graph.node("Shape", "input_ids", start=1, end=2)
  shape = graph.node("Concat", one, one, length, one, axis=0)
  mask_Nx1xTxT = graph.node("Expand", mask_Nx1x1xT, shape)
  x_NxTxH = graph.embeddings(length)
  last = config.num_hidden_layers - 1
  for layer in range(last):
    x_NxTxH = graph.layer(layer, x_NxTxH, x_NxTxH, mask_Nx1xTxT)
  first_Nx1xH = graph.node("Slice", x_NxTxH, graph.ints(0), one, one)
  x_Nx1xH = graph.layer(last, first_Nx1xH, x_NxTxH, mask_Nx1x1xT)
  x_NxH = graph.node("Squeeze", x_Nx1xH, one)
  x_NxH = graph.node("Tanh", graph.dense("bert.pooler.dense", x_NxH))
  graph.node("Identity", graph.dense("classifier", x_NxH), output="logits")
  return graph.model(len(weights["classifier.bias"]))


class _Graph:
  """Collects nodes; a value goes by its name."""

  def __init__(self, weights: Mapping[str, np.ndarray], config):
    self._weights, self._config = weights, config
    self._nodes: list[onnx.NodeProto] = []
    self._tensors: dict[str, onnx.TensorProto] = {}

  def node(self, kind: str, *inputs: str, output: str = "", **attributes):
    """Adds a node; returns its output's name."""
    output = output or f"{kind.lower()}_{len(self._nodes)}"
    self._nodes.append(
      helper.make_node(kind, inputs, [output], name=output, **attributes)
    )
    return output

  def weight(self, name: str, *, transposed: bool = False) -> str:
    """Adds one of the weights."""
    value = self._weights[name]
    return self._tensor(name, value.T if transposed else value)

  def ints(self, *values: int) -> str:
    """Adds a constant vector."""
    name = "_".join(["ints", *map(str, values)])
    return self._tensor(name, np.array(values, np.int64))

  def floats(self, value: float) -> str:
    """Adds a constant scalar."""
    return self._tensor(f"float_{value}", np.array(value, np.float32))

  def _tensor(self, name, value) -> str:
    value = np.asarray(value, order="C")
    self._tensors[name] = numpy_helper.from_array(value, name)
    return name

  def dense(self, name: str, x: str) -> str:
    """A linear map with its bias."""
    y = self.node("MatMul", x, self.weight(f"{name}.weight", transposed=True))
    return self.node("Add", y, self.weight(f"{name}.bias"))

  def norm(self, name: str, x: str) -> str:
    """LayerNorm over the hidden size."""
    return self.node(
      "LayerNormalization",
      x,
      self.weight(f"{name}.weight"),
      self.weight(f"{name}.bias"),
      axis=-1,
      epsilon=self._config.layer_norm_eps,
    )

  def embeddings(self, length: str) -> str:
    """Sum of word, token type and position embeddings, normalised."""
    name = "bert.embeddings"

    def rows(kind, ids):
      table = self.weight(f"{name}.{kind}_embeddings.weight")
      return self.node("Gather", table, ids)

    x_NxTxH = rows("word", "input_ids")
    x_NxTxH = self.node("Add", x_NxTxH, rows("token_type", "token_type_ids"))
    position_TxH = self.node(
      "Slice",
      self.weight(f"{name}.position_embeddings.weight"),
      self.ints(0),
      length,
    )
    x_NxTxH = self.node("Add", x_NxTxH, position_TxH)
    return self.norm(f"{name}.LayerNorm", x_NxTxH)

  def layer(self, layer: int, asks_NxQxH: str, x_NxTxH: str, mask: str) -> str:
    """Self-attention and feed-forward; [N, Q, H] for the tokens that ask.

    The mask is [N, 1, Q, T].
    """
    name = f"bert.encoder.layer.{layer}"
    y_NxQxH = self._attention(f"{name}.attention", asks_NxQxH, x_NxTxH, mask)
    y_NxQxH = self.dense(f"{name}.attention.output.dense", y_NxQxH)
    x_NxQxH = self.norm(
      f"{name}.attention.output.LayerNorm",
      self.node("Add", asks_NxQxH, y_NxQxH),
    )
    y_NxQxF = self.dense(f"{name}.intermediate.dense", x_NxQxH)
    y_NxQxF = self.node("Gelu", y_NxQxF)
    y_NxQxH = self.dense(f"{name}.output.dense", y_NxQxF)
    return self.norm(
      f"{name}.output.LayerNorm", self.node("Add", x_NxQxH, y_NxQxH)
    )

  def _attention(self, name: str, asks_NxQxH, x_NxTxH, mask_Nx1xQxT) -> str:
    query_NxQxH = self.dense(f"{name}.self.query", asks_NxQxH)
    key_NxTxH = self.dense(f"{name}.self.key", x_NxTxH)
    value_NxTxH = self.dense(f"{name}.self.value", x_NxTxH)
    return self.node(
      "Attention",
      query_NxQxH,
      key_NxTxH,
      value_NxTxH,
      mask_Nx1xQxT,
      q_num_heads=self._config.num_attention_heads,
      kv_num_heads=self._config.num_attention_heads,
    )

  def model(self, num_classes: int) -> onnx.ModelProto:
    """Returns the model, checked."""
    graph = helper.make_graph(
      self._nodes,
      "student",
      [
        helper.make_tensor_value_info(
          name, TensorProto.INT64, ["batch", "length"]
        )
        for name in ("input_ids", "attention_mask", "token_type_ids")
      ],
      [
        helper.make_tensor_value_info(
          "logits", TensorProto.FLOAT, ["batch", num_classes]
        )
      ],
      list(self._tensors.values()),
    )
    model = helper.make_model(
      graph,
      producer_name="ppl_jax",
      opset_imports=[helper.make_opsetid("", _OPSET)],
      ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model
