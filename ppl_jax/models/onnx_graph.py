"""The student as an ONNX graph of standard operators.

Written node by node from the weights, so that it needs neither PyTorch nor a
tracer, runs on any runtime, and computes in the last layer only the token that
is pooled. onnxruntime fuses what can be fused by itself, when it loads it.

Shape letters: N segments, T tokens, H hidden size, A heads, E head size.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ppl_jax.models import bert

_OPSET = 20  # the first with Gelu
_IR_VERSION = 10  # of that operator set; older runtimes refuse newer files


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
  x_NxTxH = graph.embeddings()
  for layer in range(config.num_hidden_layers):
    asks_NxQxH = x_NxTxH
    if layer == config.num_hidden_layers - 1:
      one = graph.ints(1)
      asks_NxQxH = graph.node("Slice", x_NxTxH, graph.ints(0), one, one)
    x_NxTxH = graph.layer(layer, asks_NxQxH, x_NxTxH, mask_Nx1x1xT)
  x_NxH = graph.node("Squeeze", x_NxTxH, graph.ints(1))
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

  def embeddings(self) -> str:
    """Sum of word, token type and position embeddings, normalised."""
    name = "bert.embeddings"

    def rows(kind, ids):
      table = self.weight(f"{name}.{kind}_embeddings.weight")
      return self.node("Gather", table, ids)

    x_NxTxH = rows("word", "input_ids")
    x_NxTxH = self.node("Add", x_NxTxH, rows("token_type", "token_type_ids"))
    length = self.node("Shape", "input_ids", start=1, end=2)
    position_TxH = self.node(
      "Slice",
      self.weight(f"{name}.position_embeddings.weight"),
      self.ints(0),
      length,
    )
    x_NxTxH = self.node("Add", x_NxTxH, position_TxH)
    return self.norm(f"{name}.LayerNorm", x_NxTxH)

  def layer(self, layer: int, asks_NxQxH: str, x_NxTxH: str, mask: str) -> str:
    """Self-attention and feed-forward; [N, Q, H] for the tokens that ask."""
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

  def _attention(self, name: str, asks_NxQxH, x_NxTxH, mask_Nx1x1xT) -> str:
    A = self._config.num_attention_heads
    H = self._config.hidden_size

    def heads(kind, x, order):
      y = self.dense(f"{name}.self.{kind}", x)
      y = self.node("Reshape", y, self.ints(0, 0, A, H // A))
      return self.node("Transpose", y, perm=order)

    query_NxAxQxE = heads("query", asks_NxQxH, (0, 2, 1, 3))
    key_NxAxExT = heads("key", x_NxTxH, (0, 2, 3, 1))
    value_NxAxTxE = heads("value", x_NxTxH, (0, 2, 1, 3))
    z_NxAxQxT = self.node("MatMul", query_NxAxQxE, key_NxAxExT)
    scale = self.floats(1 / math.sqrt(H // A))
    z_NxAxQxT = self.node("Mul", z_NxAxQxT, scale)
    z_NxAxQxT = self.node("Add", z_NxAxQxT, mask_Nx1x1xT)
    weights_NxAxQxT = self.node("Softmax", z_NxAxQxT, axis=-1)
    y_NxAxQxE = self.node("MatMul", weights_NxAxQxT, value_NxAxTxE)
    y_NxQxAxE = self.node("Transpose", y_NxAxQxE, perm=(0, 2, 1, 3))
    return self.node("Reshape", y_NxQxAxE, self.ints(0, 0, H))

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
