"""Generated dialogues of a support desk, and simulated LLM votes on them.

A customer and an agent talk about a parcel, a router, an invoice and the like
in 6 to 10 short utterances. A third of the utterances ("Yes, sure.", "The
second one.") get their class from what was said before: a yes confirms a fact
after a question and accepts after an offer. The words are in
`ppl_jax.data.support_templates`; each split has its own templates, phrases and
values.

Options: `seed` (0) and the dialogues a split, `train` (500), `validation` (200)
and `test` (200). Dialogue i of a split does not depend on how many there are.
"""

import functools
import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import support_templates as words

VERSION = "1"
CLASSES = (
  "question",  # asks for a fact or a wish
  "check",  # asks whether a fact is right
  "offer",  # the desk proposes to do something
  "problem",  # says what is wrong
  "request",  # tells the desk what to do, or what is wished
  "inform",  # gives a fact
  "confirm",  # a fact is right
  "deny",  # a fact is not right
  "accept",  # yes to an offer or a request
  "decline",  # no to an offer or a request
  "closing",  # thanks and goodbye
)
TASK = "single_label"

_DEFAULTS = {"seed": 0, "train": 500, "validation": 200, "test": 200}
_BODY = (5, 6)  # utterances before the end, at least
_AGENT, _CUSTOMER = "agent", "customer"
# How often an answer is one of those that only its context tells apart.
_SHORT_ANSWERS = 0.85
_OPENERS = 0.35
_TAILS = 0.15
_ASIDES = 0.2
_ANSWERS = ("confirm", "deny", "accept", "decline", "closing")


def source_files(
  source: pathlib.Path | None, options: Mapping[str, Any]
) -> list[pathlib.Path]:
  """No files: the dialogues are generated. ValueError if a source is given."""
  if source is not None:
    raise ValueError(
      f"dataset 'support' is generated and reads no files, got {str(source)!r}:"
      " leave config.dataset.source empty"
    )
  _checked_options(options)
  return []


def read(
  source: pathlib.Path | None,
  split: str,
  classes: Sequence[str],
  options: Mapping[str, Any],
) -> Iterator[dialogues_lib.Dialogue]:
  """Yields the dialogues of a split, every utterance labelled.

  Args:
    source: None.
    split: "train", "validation" or "test".
    classes: `CLASSES`.
    options: see the module.

  Yields:
    Dialogues with gold [L, 11] uint8, L from 6 to 10.

  Raises:
    ValueError: a source, or an option that is unknown or not a number >= 0.
  """
  source_files(source, options)
  settings = _checked_options(options)
  part = words.PARTS.index(split)
  for number in range(settings[split]):
    rng = np.random.default_rng([settings["seed"], part, number])
    draft = _write_dialogue(rng, part)
    gold = np.zeros((len(draft.texts), len(classes)), np.uint8)
    columns = [classes.index(name) for name in draft.classes]
    gold[np.arange(len(columns)), columns] = 1
    yield dialogues_lib.Dialogue(
      dialogue_id=f"{split}-{number}",
      speakers=tuple(draft.speakers),
      texts=tuple(draft.texts),
      gold=gold,
      labelled=np.ones(len(columns), np.bool_),
    )


def votes(
  dialogues: Iterable[dialogues_lib.Dialogue],
  classes: Sequence[str],
  *,
  annotators: int = 5,
  seed: int = 0,
  dialogue_noise: float = 0.33,
  shared: float = 0.8,
  utterance_noise: float = 0.25,
  annotator_noise: float = 0.2,
  unusable: float = 0.03,
) -> Iterator[dict[str, Any]]:
  """Simulates the votes of an LLM whose errors hold a whole dialogue long.

  The error model follows hypothesis H2 of arXiv 2503.05620, section 3.4: an
  annotator's preference for class c at utterance i of dialogue d is

      gold_ic + shift_dc + noise_ic + own_ic

  with normal shift, noise and own of the standard deviations below; it votes
  for the largest. "none" is one more candidate, without gold and shift. A
  dialogue's votes depend on its id, gold and `seed` alone, and the first n
  annotators vote alike whatever `annotators` is.

  Args:
    dialogues: with every utterance labelled.
    classes: the C classes of their gold, in order.
    annotators: how many, named "a1", "a2" and so on.
    seed: of the simulation.
    dialogue_noise: of the shift, drawn once a dialogue and class.
    shared: share in [0, 1] of the shift's variance common to all annotators.
    utterance_noise: of the noise, drawn once an utterance and class for all
      annotators.
    annotator_noise: of what each annotator draws alone.
    unusable: share of votes without a usable answer.

  Yields:
    Lines of a votes file: {"dialogue_id", "utterance" (from 0), "annotator",
    "sample" (0), "label"}, label a class, "none" (of the classes) or None
    (unusable).

  Raises:
    ValueError: an utterance without gold, or a class named "none".
  """
  if "none" in classes:
    raise ValueError(
      "the answer 'none' must not be a class in simulated votes, got classes"
      f" {list(classes)}: rename the class"
    )
  labels = (*classes, "none")
  for dialogue in dialogues:
    if not dialogue.labelled.all():
      raise ValueError(
        "votes are simulated from gold, which every utterance must have; got"
        f" dialogue {dialogue.dialogue_id!r} with {(~dialogue.labelled).sum()}"
        " unlabelled: leave it out"
      )
    digest = hashlib.sha256(dialogue.dialogue_id.encode("utf-8")).digest()
    rng = np.random.default_rng([seed, *digest])
    L, C = dialogue.gold.shape
    gold = np.concatenate([dialogue.gold, np.zeros((L, 1))], axis=1)
    shift_all = _shift(rng, C) * np.sqrt(shared)
    noise = rng.standard_normal((L, C + 1)) * utterance_noise
    for annotator in range(annotators):
      shift = shift_all + _shift(rng, C) * np.sqrt(1 - shared)
      own = rng.standard_normal((L, C + 1)) * annotator_noise
      preference = gold + shift * dialogue_noise + noise + own
      usable = rng.random(L) >= unusable
      for i, best in enumerate(preference.argmax(axis=1)):
        yield {
          "dialogue_id": dialogue.dialogue_id,
          "utterance": i,
          "annotator": f"a{annotator + 1}",
          "sample": 0,
          "label": labels[best] if usable[i] else None,
        }


def _shift(rng: np.random.Generator, num_classes: int) -> np.ndarray:
  """A standard normal [C + 1] draw, 0 for the last: "none"."""
  return np.append(rng.standard_normal(num_classes), 0.0)


class _Draft:
  """A dialogue that is being written, with the words of one part and domain."""

  def __init__(self, rng: np.random.Generator, part: int):
    self.rng = rng
    self.speakers = []
    self.texts = []
    self.classes = []
    self._part = part
    self._domain = self.pick(sorted(words.DOMAINS))
    self._unused = {}

  def pick(self, choices: Sequence[Any]) -> Any:
    return choices[self.rng.integers(len(choices))]

  def chance(self, probability: float) -> bool:
    return bool(self.rng.random() < probability)

  def phrase(self, name: str) -> str:
    """One of the domain's phrases, none twice before all were used."""
    if not self._unused.get(name):
      phrases = _entries(words.DOMAINS[self._domain][name][self._part])
      self._unused[name] = [
        phrases[i] for i in self.rng.permutation(len(phrases))
      ]
    return self._unused[name].pop()

  def asked(self, name: str) -> dict[str, str]:
    """A fact or wish, the value that answers it and another that does not."""
    phrase, kind = self.phrase(name).split(":")
    values = _entries(words.VALUES[kind][self._part])
    value, other = self.rng.choice(len(values), size=2, replace=False)
    return {name: phrase, "value": values[value], "other": values[other]}

  def say(
    self, speaker: str, template: str, label: str = "", **slots: str
  ) -> None:
    """Adds an utterance; `label` where the template has no class of its own."""
    text = self.pick(_entries(words.TEMPLATES[template][self._part]))
    text = text.format(**slots)
    if speaker == _AGENT:
      text = text.format(my="your", me="you")
    else:
      text = text.format(my="my", me="me")
    text = text[0].upper() + text[1:]
    own_class = template.split(".")[0]
    answers = bool(label) or own_class in _ANSWERS
    openers = words.ANSWER_OPENERS if answers else words.OPENERS
    if not self.texts:
      text = f"{self.pick(words.GREETINGS)} {text}"
    elif self.chance(_OPENERS):
      text = f"{self.pick(openers)} {text}"
    if not answers and self.chance(_TAILS):
      text = f"{text} {self.pick(words.TAILS)}"
    self.speakers.append(speaker)
    self.texts.append(text)
    self.classes.append(label or own_class)


@functools.cache
def _entries(text: str) -> tuple[str, ...]:
  return tuple(" ".join(entry.split()) for entry in text.split("|"))


def _write_dialogue(rng: np.random.Generator, part: int) -> _Draft:
  draft = _Draft(rng, part)
  _open(draft)
  # An exchange takes one to three utterances, the end one or two.
  body = rng.integers(_BODY[0], _BODY[1] + 1)
  while len(draft.texts) < body:
    draft.pick(_EXCHANGES)(draft)
  _close(draft)
  return draft


def _open(draft: _Draft) -> None:
  draft.pick((_report, _report, _ask_to_act, _ask_fact_of_agent))(draft)


def _report(draft: _Draft) -> None:
  draft.say(_CUSTOMER, "problem", problem=draft.phrase("problem"))
  if draft.chance(0.4):
    draft.say(_CUSTOMER, "inform.detail", detail=draft.phrase("detail"))
  if draft.chance(0.4):
    draft.say(_AGENT, "inform.news", news=draft.phrase("news"))


def _ask_to_act(draft: _Draft) -> None:
  action = draft.phrase("action")
  draft.say(_CUSTOMER, "request", action=action)
  _agree(draft, _AGENT, "request", action=action)


def _offer(draft: _Draft) -> None:
  action = draft.phrase("action")
  draft.say(_AGENT, "offer", action=action)
  if draft.chance(_ASIDES):
    draft.say(_AGENT, "inform.aside")
  _agree(draft, _CUSTOMER, "offer", action=action)


def _agree(draft: _Draft, speaker: str, to: str, **slots: str) -> None:
  """Accepts or declines an offer or a request."""
  label = draft.pick(("accept", "decline"))
  if not draft.chance(_SHORT_ANSWERS):
    draft.say(speaker, f"{label}.{to}", **slots)
    return
  short = {"accept": ("yes", "yes"), "decline": ("no", "no")}[label]
  if to == "offer":
    short = {"accept": ("yes", "thanks"), "decline": ("no", "no_thanks")}[label]
  draft.say(speaker, draft.pick(short), label)


def _ask_fact_of_agent(draft: _Draft) -> None:
  _ask_fact(draft, _CUSTOMER, _AGENT)


def _ask_fact_of_customer(draft: _Draft) -> None:
  _ask_fact(draft, _AGENT, _CUSTOMER)


def _ask_fact(draft: _Draft, asking: str, answering: str) -> None:
  slots = draft.asked("fact")
  draft.say(asking, "question.fact", **slots)
  if draft.chance(_SHORT_ANSWERS):
    draft.say(answering, "value", "inform", **slots)
  else:
    draft.say(answering, "inform.value", **slots)


def _ask_wish(draft: _Draft) -> None:
  slots = draft.asked("wish")
  draft.say(_AGENT, "question.wish", **slots)
  if draft.chance(_SHORT_ANSWERS):
    draft.say(_CUSTOMER, "value", "request", **slots)
  else:
    draft.say(_CUSTOMER, "request.value", **slots)


def _check_fact(draft: _Draft) -> None:
  slots = draft.asked("fact")
  sides = (_AGENT, _CUSTOMER)
  asking, answering = sides if draft.chance(0.6) else sides[::-1]
  draft.say(asking, "check", **slots)
  label = draft.pick(("confirm", "deny"))
  if draft.chance(_SHORT_ANSWERS):
    draft.say(answering, {"confirm": "yes", "deny": "no"}[label], label)
  else:
    draft.say(answering, label, **slots)


def _close(draft: _Draft) -> None:
  kind = draft.rng.integers(3)
  if kind == 0:
    draft.say(_AGENT, "question.else")
    draft.say(_CUSTOMER, draft.pick(("no", "no_thanks")), "closing")
  elif kind == 1:
    draft.say(_AGENT, "inform.news", news=draft.phrase("news"))
    draft.say(_CUSTOMER, "thanks", "closing")
  else:
    draft.say(_CUSTOMER, "closing.customer")
    if draft.chance(0.5):
      draft.say(_AGENT, "closing.agent")


# As many facts as wishes are asked of the customer, so that an answer alone
# tells neither.
_EXCHANGES = (
  *(_report, _ask_to_act, _offer, _offer),
  *(_check_fact, _check_fact, _check_fact),
  *(_ask_fact_of_customer, _ask_fact_of_customer, _ask_wish, _ask_wish),
)


def _checked_options(options: Mapping[str, Any]) -> dict[str, int]:
  for name, value in options.items():
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name not in _DEFAULTS or not whole or value < 0:
      raise ValueError(
        f"config.dataset.options of support may hold {', '.join(_DEFAULTS)},"
        f" each a whole number >= 0; got {name}={value!r}: correct it"
      )
  return {**_DEFAULTS, **options}
