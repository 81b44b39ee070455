"""A BERT classifier that pools otherwise than by BERT's pooler, for PyTorch.

An exported student has this file beside its weights where transformers has no
class for it; `trust_remote_code=True` has transformers load it. It needs
nothing else of ppl_jax.
"""

import torch
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class PooledBertConfig(BertConfig):
  """A BERT's config with `pooling`, 'cls' or 'mean'.

  Of a model type of its own: transformers loads a 'bert' without asking for
  this code, and starts a pooler at random.
  """

  model_type = "pooled_bert"
  pooling: str = "mean"


class PooledBertForSequenceClassification(BertPreTrainedModel):
  """Linear scorer on [CLS] as it is, or on the mean over the last utterance.

  The last utterance is the tokens of type 1, its [SEP] included.
  """

  config_class = PooledBertConfig

  def __init__(self, config):
    super().__init__(config)
    if config.pooling not in ("cls", "mean"):
      raise ValueError(
        f"pooling must be cls or mean, got {config.pooling!r}. Correct it in"
        " config.json."
      )
    self.num_labels = config.num_labels
    self.bert = BertModel(config, add_pooling_layer=False)
    dropout = config.classifier_dropout
    if dropout is None:
      dropout = config.hidden_dropout_prob
    self.dropout = torch.nn.Dropout(dropout)
    self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
    self.post_init()

  def forward(
    self,
    input_ids=None,
    attention_mask=None,
    token_type_ids=None,
    position_ids=None,
    inputs_embeds=None,
    labels=None,
    return_dict=None,
    **kwargs,
  ):
    """Scores segments; arguments as of `BertForSequenceClassification`.

    Returns:
      A SequenceClassifierOutput, with the loss where there are labels; a tuple
      if `return_dict` is False.

    Raises:
      ValueError: the mean is asked for without token types.
    """
    if token_type_ids is None and self.config.pooling == "mean":
      raise ValueError(
        "token_type_ids must be given, 1 for the last utterance and its [SEP],"
        " got None. Tokenize the context and the utterance as a pair."
      )
    outputs = self.bert(
      input_ids,
      attention_mask=attention_mask,
      token_type_ids=token_type_ids,
      position_ids=position_ids,
      inputs_embeds=inputs_embeds,
      return_dict=True,
      **kwargs,
    )
    x_NxTxH = outputs.last_hidden_state
    if self.config.pooling == "cls":
      pooled_NxH = x_NxTxH[:, 0]
    else:
      counts_NxT = token_type_ids
      if attention_mask is not None:
        counts_NxT = counts_NxT * attention_mask
      count_Nx1 = counts_NxT.sum(dim=1, keepdim=True).clamp(min=1)
      share_NxT = counts_NxT.float() / count_Nx1
      pooled_Nx1xH = share_NxT[:, None] @ x_NxTxH.float()
      pooled_NxH = pooled_Nx1xH[:, 0].to(x_NxTxH.dtype)
    logits = self.classifier(self.dropout(pooled_NxH))
    loss = None
    if labels is not None:
      loss = self.loss_function(labels, logits, self.config)
    output = SequenceClassifierOutput(
      loss=loss,
      logits=logits,
      hidden_states=outputs.hidden_states,
      attentions=outputs.attentions,
    )
    return output.to_tuple() if return_dict is False else output
