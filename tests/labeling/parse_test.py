import json
import string

from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling import parse as parse_lib
from labeling import render

S = parse_lib.Status
OPTIONS = ("inform", "informIntent", "Ask", "ASK", "none")
TEXTS = (
  "Well , so what is new?",
  "Not much.",
  "I moved to Leeds, and you?",
  "...",
)


def question(asks="every", multi_label=False, none_label="none", **more):
  positive = asks == "positive"
  fields = {
    "prompt_id": "p",
    "asks": asks,
    "dialogue_id": "d",
    "first": 3,
    "texts": TEXTS,
    "asked": (6,) if asks == "last" else (4, 5, 6),
    "options": OPTIONS if none_label else OPTIONS[:-1],
    "class_name": "Ask" if positive else "",
    "multi_label": multi_label,
    "none_label": none_label,
  }
  if positive:
    fields |= {"options": ("Ask",), "none_label": ""}
  return render.Question(**(fields | more))


def entry(number=5, words="Not much.", **more):
  return {"number": number, "words": words, **more}


def answer(*labels, key="label"):
  words = ("Not much.", "I moved to", "...")
  return {
    "utterances": [
      entry(5 + i, words[i], **{key: label}) for i, label in enumerate(labels)
    ]
  }


RIGHT = answer("inform", "Ask", "none")


def parse(asked, said, finish_reason="stop", refusal=None):
  text = said if isinstance(said, str) or said is None else json.dumps(said)
  return parse_lib.parse(asked, text, finish_reason, refusal)


def changed(said, *path, value):
  """A copy of a JSON value in which one thing is another."""
  if not path:
    return value
  copy = said.copy()
  copy[path[0]] = changed(copy[path[0]], *path[1:], value=value)
  return copy


class ParseTest(parameterized.TestCase):
  def _valid(self, asked, said, *labels):
    status, votes = parse(asked, said)
    self.assertEqual(status, S.VALID)
    self.assertEqual(
      votes,
      tuple(
        parse_lib.Vote(u, x) for u, x in zip(asked.asked, labels, strict=True)
      ),
    )

  def _refused(self, status, asked, said, *args):
    self.assertEqual(parse(asked, said, *args), (status, ()))

  def test_every(self):
    self._valid(question(), RIGHT, ("inform",), ("Ask",), ())
    # Numbers and words say which is which, so that order does not matter.
    backwards = {"utterances": RIGHT["utterances"][::-1]}
    self._valid(question(), backwards, ("inform",), ("Ask",), ())

  def test_every_multi_label(self):
    asked = question(multi_label=True)
    said = answer(["inform", "Ask"], [], ["none"], key="labels")
    self._valid(asked, said, ("inform", "Ask"), (), ())
    for labels in (["Ask", "Ask"], ["Ask", "none"]):
      said = answer(labels, [], [], key="labels")
      self._refused(S.MALFORMED, asked, said)
    without = question(multi_label=True, none_label="")
    said = answer(["inform", "Ask"], ["ASK"], [], key="labels")
    self._refused(S.MALFORMED, without, said)
    said = answer(["inform", "Ask"], ["ASK"], ["none"], key="labels")
    self._refused(S.OFF_LABEL, without, said)

  def test_positive(self):
    asked = question("positive")
    said = {"utterances": [entry(6, "I moved to")]}
    self._valid(asked, said, (), ("Ask",), ())
    self._valid(asked, {"utterances": []}, (), (), ())
    both = {"utterances": [entry(7, "..."), entry()]}
    self._valid(asked, both, ("Ask",), (), ("Ask",))
    twice = {"utterances": [entry(), entry()]}
    self._refused(S.MISMATCHED, asked, twice)
    context = {"utterances": [entry(4, "Well , so")]}
    self._refused(S.MISMATCHED, asked, context)
    labelled = {"utterances": [entry(label="Ask")]}
    self._refused(S.MALFORMED, asked, labelled)

  def test_last(self):
    asked = question("last")
    self._valid(asked, {"label": "Ask"}, ("Ask",))
    self._valid(asked, {"label": "none"}, ())
    self._refused(S.MALFORMED, asked, {"labels": ["Ask"]})
    self._refused(S.OFF_LABEL, asked, {"label": "tell"})
    several = question("last", multi_label=True)
    self._valid(several, {"labels": ["inform", "Ask"]}, ("inform", "Ask"))
    self._valid(several, {"labels": []}, ())
    self._refused(S.MALFORMED, several, {"label": "Ask"})

  @parameterized.parameters(
    "inform",
    " INFORM.\n",
    '"inform"',
    "'Inform.'",
    "\u201cinform\u201d.",
    "`inform`",
  )
  def test_a_bare_label(self, text):
    for multi_label in (False, True):
      asked = question("last", multi_label=multi_label)
      self._valid(asked, text, ("inform",))
    self._refused(S.MALFORMED, question(), text)

  @parameterized.parameters(
    "ask", "infor", "inform intent", "inform, Ask", "It is inform.", "inform!"
  )
  def test_other_words_are_no_bare_label(self, text):
    self._refused(S.MALFORMED, question("last"), text)

  def test_a_fence(self):
    line = json.dumps(RIGHT)
    for text in (f"```json\n{line}\n```", f"```\n{line}```", f" {line}\n"):
      self._valid(question(), text, ("inform",), ("Ask",), ())
    for text in (
      f"```yaml\n{line}\n```",
      f"```json\n{line}",
      f"x```\n{line}```",
    ):
      self._refused(S.MALFORMED, question(), text)

  def test_why_the_server_stopped(self):
    for text in (RIGHT, None, ""):
      self._refused(S.TRUNCATED, question(), text, "length")
      self._refused(S.REFUSED, question(), text, "content_filter")
      self._refused(S.REFUSED, question(), text, "stop", "I would rather not.")
    for text in (None, "", " \n"):
      self._refused(S.EMPTY, question(), text)
    self.assertEqual(parse(question(), RIGHT, None)[0], S.VALID)

  @parameterized.named_parameters(
    ("prose_before", "Sure! " + json.dumps(RIGHT)),
    ("prose_after", json.dumps(RIGHT) + " I hope this helps."),
    ("twice", json.dumps(RIGHT) * 2),
    ("list", [RIGHT]),
    ("entries_only", RIGHT["utterances"]),
    ("null", "null"),
    ("single_quotes", str(RIGHT)),
    ("extra_key", {**RIGHT, "reason": "x"}),
    ("no_list", changed(RIGHT, "utterances", value={})),
    (
      "extra_key_of_entry",
      changed(RIGHT, "utterances", 0, value=entry(label="inform", why="x")),
    ),
    ("no_words", changed(RIGHT, "utterances", 0, value={"number": 5})),
    *(
      (f"number_{i}", changed(RIGHT, "utterances", 0, "number", value=value))
      for i, value in enumerate((True, 5.0, "5", None, [5]))
    ),
    *(
      (f"label_{i}", changed(RIGHT, "utterances", 0, "label", value=value))
      for i, value in enumerate((None, 1, ["inform"], True))
    ),
    ("words", changed(RIGHT, "utterances", 0, "words", value=None)),
    ("nan", json.dumps(RIGHT).replace("5", "NaN")),
    ("infinity", json.dumps(RIGHT).replace("5", "-Infinity")),
    ("overflow", json.dumps(RIGHT).replace("5", "1e999")),
    ("long_number", json.dumps(RIGHT).replace("5", "5" * 5000)),
    ("deep", '{"utterances": ' + "[" * 100_000),
    ("deep_and_closed", "[" * 50_000 + "]" * 50_000),
    ("deep_objects", '{"a": ' * 100_000),
    (
      "key_twice",
      json.dumps(RIGHT).replace('"label"', '"label": "Ask", "label"', 1),
    ),
    ("list_twice", '{"utterances": [], ' + json.dumps(RIGHT)[1:]),
    ("zero_byte", json.dumps(RIGHT) + "\0"),
    ("byte_order_mark", "\ufeff" + json.dumps(RIGHT)),
  )
  def test_malformed(self, said):
    self._refused(S.MALFORMED, question(), said)

  @parameterized.parameters("tell", "", "inform ", "inform.", "ask", "\ud800")
  def test_off_label(self, label):
    said = changed(RIGHT, "utterances", 1, "label", value=label)
    self._refused(S.OFF_LABEL, question(), said)

  def test_case_where_it_leaves_no_doubt(self):
    said = changed(RIGHT, "utterances", 1, "label", value="INFORMintent")
    self._valid(question(), said, ("inform",), ("informIntent",), ())
    said = changed(RIGHT, "utterances", 1, "label", value="ASK")
    self._valid(question(), said, ("inform",), ("ASK",), ())

  @parameterized.parameters(0, -5, 4, 8, 2**63, 10**400)
  def test_a_number_that_is_not_asked(self, number):
    said = changed(RIGHT, "utterances", 0, "number", value=number)
    self._refused(S.MISMATCHED, question(), said)

  @parameterized.parameters(
    ("I moved to", True),
    ("i moved, to...", True),
    ("I moved  to", True),
    ("I moved", False),
    ("I moved to Leeds", False),
    ("moved I to", False),
    ("", False),
    ("...", False),
    ("Not much.", False),
    ("I moved to\ud800", True),
  )
  def test_words(self, words, right):
    said = changed(RIGHT, "utterances", 1, "words", value=words)
    status = S.VALID if right else S.MISMATCHED
    self.assertEqual(parse(question(), said)[0], status)

  @parameterized.parameters(
    ("Well , so what is new?", "Well , so", True),
    # Three words may be counted without the comma; nothing else is right.
    ("Well , so what is new?", "Well, so what", True),
    ("Well , so what is new?", "Well,", False),
    ("Well , so what is new?", "Well, so what is", False),
    ("...", "...", True),
    ("...", "", False),
    ("?! ... -- yes", "?! ... --", True),
    ("?! ... -- yes", "Yes", True),
    ("?! ... -- yes", "", False),
    ("\U0001f600 \U0001f600", "\U0001f600 \U0001f600", True),
    ("\U0001f600 \U0001f600", "\U0001f641", False),
    ("STRASSE", "stra\u00dfe", True),
    ("Caf\u00e9 au lait", "Cafe\u0301 au lait", True),
    ("Cafe au lait", "Caf\u00e9 au lait", False),
    ("It costs $5.", "It costs 5", True),
    ("It costs $5.", "It costs 6", False),
  )
  def test_case_and_punctuation_of_words(self, text, words, right):
    asked = question("positive", texts=(text,), first=4, asked=(4,))
    said = {"utterances": [entry(5, words)]}
    status = S.VALID if right else S.MISMATCHED
    self.assertEqual(parse(asked, said)[0], status)

  def test_an_entry_missing_or_twice(self):
    for i in range(3):
      entries = RIGHT["utterances"]
      fewer = {"utterances": entries[:i] + entries[i + 1 :]}
      self._refused(S.PARTIAL, question(), fewer)
      more = {"utterances": [*entries, entries[i]]}
      self._refused(S.MISMATCHED, question(), more)
    self._refused(S.PARTIAL, question(), {"utterances": []})

  def test_the_first_of_several_faults_is_named(self):
    both = {"utterances": [entry(8, "x", label="tell")]}
    self._refused(S.OFF_LABEL, question(), both)
    both = {"utterances": [entry(8, "x", label="inform")]}
    self._refused(S.MISMATCHED, question(), both)


# Words without which no two texts begin alike.
NOUNS = st.text(string.ascii_lowercase, min_size=1, max_size=4)


@st.composite
def questions(draw):
  """A question, the classes of each utterance and the right answer."""
  asks = draw(st.sampled_from(["last", "every", "positive"]))
  length = draw(st.integers(2, 6))
  first = draw(st.integers(0, 200))
  if asks == "last":
    asked = (first + length - 1,)
  else:
    start = draw(st.integers(0, length - 2))
    asked = tuple(range(first + start, first + length))
  texts = tuple(
    f"{i}{noun} {draw(NOUNS)}, {draw(NOUNS)}. {draw(NOUNS)}"
    for i, noun in enumerate(draw(st.lists(NOUNS, min_size=6, max_size=6)))
  )
  classes = ("yes", "no", "Maybe so", "na\u00efve")
  multi_label = draw(st.booleans())
  none_label = draw(st.sampled_from(["none", ""])) if asks != "positive" else ""
  options = (*classes, none_label) if none_label else classes
  asked = render.Question(
    prompt_id="p",
    asks=asks,
    dialogue_id="d",
    first=first,
    texts=texts[:length],
    asked=asked,
    options=("yes",) if asks == "positive" else options,
    class_name="yes" if asks == "positive" else "",
    multi_label=multi_label,
    none_label=none_label,
  )
  if asks == "positive":
    one = st.sampled_from([(), ("yes",)])
  else:
    least = 0 if none_label else 1
    most = len(classes) if multi_label else 1
    one = st.lists(
      st.sampled_from(classes), min_size=least, max_size=most, unique=True
    ).map(tuple)
  labels = {i: draw(one) for i in asked.asked}
  return asked, labels, render.answer(asked, labels)


JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text()
  | st.sampled_from(["yes", "none", "Not much."]),
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.dictionaries(
      st.sampled_from(["utterances", "number", "words", "label", "labels"])
      | st.text(),
      inner,
      max_size=4,
    )
  ),
  max_leaves=12,
)
RAW = st.text(st.characters(codec=None))


class MutationTest(absltest.TestCase):
  """A right answer, changed: never a vote, and the right reason."""

  def _check(self, asked, text, *statuses):
    status, votes = parse_lib.parse(asked, text, "stop")
    self.assertIn(status, statuses, text)
    self.assertEqual(votes, ())

  @settings(max_examples=100, deadline=None)
  @given(questions(), RAW)
  def test_right_answers_are_votes(self, drawn, noise):
    asked, labels, text = drawn
    wanted = tuple(parse_lib.Vote(i, labels[i]) for i in asked.asked)
    for said in (text, f"\n{text} ", f"```json\n{text}\n```"):
      self.assertEqual(parse_lib.parse(asked, said, "stop"), (S.VALID, wanted))
    self.assertEqual(parse_lib.parse(asked, text, "length"), (S.TRUNCATED, ()))
    self.assertEqual(
      parse_lib.parse(asked, text, "stop", f"no {noise}"), (S.REFUSED, ())
    )

  @settings(max_examples=30, deadline=None)
  @given(questions())
  def test_cut_anywhere(self, drawn):
    asked, _, text = drawn
    for end in range(len(text)):
      status = S.MALFORMED if end else S.EMPTY
      self._check(asked, text[:end], status)
      self._check(asked, f"```json\n{text[:end]}\n```", S.MALFORMED)
    for start in range(1, len(text)):
      self._check(asked, text[start:], S.MALFORMED)

  @settings(max_examples=100, deadline=None)
  @given(questions(), st.data())
  def test_form(self, drawn, data):
    asked, _, text = drawn
    said = json.loads(text)
    places = [said, *said.get("utterances", [])]
    place = data.draw(st.sampled_from(places))
    key = data.draw(st.sampled_from(sorted(place)))
    kind = data.draw(
      st.sampled_from(["more", "less", "rename", "retype", "twice", "prose"])
    )
    if kind == "prose":
      word = data.draw(st.sampled_from(["Sure: ", "{}", "\\", "\ud800", "0"]))
      for wrapped in (word + text, text + word):
        self._check(asked, wrapped, S.MALFORMED)
      return
    if kind == "twice":
      value = json.dumps(place[key])
      for again in (value, "null"):
        inner = json.dumps(place, ensure_ascii=False)
        doubled = inner[:-1] + f', "{key}": {again}' + "}"
        self.assertIn(inner, text)
        self._check(asked, text.replace(inner, doubled), S.MALFORMED)
      return
    if kind == "more":
      place[data.draw(st.text().filter(lambda k: k not in place))] = 0
    elif kind == "less":
      del place[key]
    elif kind == "rename":
      place[key + " "] = place.pop(key)
    else:
      right = type(place[key])
      place[key] = data.draw(JSON.filter(lambda v: type(v) is not right))
    self._check(asked, json.dumps(said), S.MALFORMED)

  @settings(max_examples=100, deadline=None)
  @given(questions(), st.text(), st.data())
  def test_labels(self, drawn, label, data):
    asked, _, text = drawn
    said = json.loads(text)
    if asked.asks == "positive":
      return
    entry = data.draw(st.sampled_from(said.get("utterances", [said])))
    known = [name.casefold() for name in asked.options]
    if label.casefold() in known:
      label += "s"
    if asked.multi_label:
      entry["labels"].append(label)
    else:
      entry["label"] = label
    self._check(asked, json.dumps(said), S.OFF_LABEL)

  @settings(max_examples=200, deadline=None)
  @given(questions(), st.data())
  def test_which_is_which(self, drawn, data):
    asked, _, text = drawn
    said = json.loads(text)
    entries = said.get("utterances", [])
    if not entries:
      return
    i = data.draw(st.integers(0, len(entries) - 1))
    kind = data.draw(
      st.sampled_from(["shift", "shift_one", "words", "swap", "drop", "twice"])
    )
    by = data.draw(st.sampled_from([-1, 1, 1000, -(10**30)]))
    wanted = [S.MISMATCHED]
    if kind == "shift":
      for entry in entries:
        entry["number"] += by
    elif kind == "shift_one":
      entries[i]["number"] += by
    elif kind == "words":
      entries[i]["words"] = entries[i]["words"] + " zebra"
    elif kind == "swap":
      if len(entries) == 1:
        return
      # All words one place on, as when an utterance was skipped.
      words = [entry["words"] for entry in entries]
      for entry, other in zip(entries, words[1:] + words[:1], strict=True):
        entry["words"] = other
    elif kind == "twice":
      entries.insert(0, entries[i])
    else:
      del entries[i]
      wanted = [S.PARTIAL]
      if asked.asks == "positive":
        # One class fewer is another valid answer, and no fault to find.
        left = dict.fromkeys(asked.asked, ())
        left |= {e["number"] - 1: ("yes",) for e in entries}
        self.assertEqual(
          parse_lib.parse(asked, json.dumps(said), "stop"),
          (S.VALID, tuple(parse_lib.Vote(u, x) for u, x in left.items())),
        )
        return
    self._check(asked, json.dumps(said), *wanted)

  @settings(max_examples=200, deadline=None)
  @given(questions(), st.one_of(RAW, JSON.map(json.dumps)), st.data())
  def test_anything_else_is_no_vote(self, drawn, text, data):
    asked, _, right = drawn
    if data.draw(st.booleans()):
      # Near a right answer: a stretch of it is replaced.
      start = data.draw(st.integers(0, len(right)))
      end = data.draw(st.integers(start, len(right)))
      text = right[:start] + text + right[end:]
    finish = data.draw(st.sampled_from(["stop", None, "tool_calls", "x"]))
    status, votes = parse_lib.parse(asked, text, finish)
    self.assertIsInstance(status, S)
    if status != S.VALID:
      self.assertEqual(votes, ())
      return
    self.assertEqual(tuple(v.utterance for v in votes), asked.asked)
    for vote in votes:
      self.assertNotIn(asked.none_label, vote.labels)
      self.assertContainsSubset(vote.labels, asked.options)
      if asked.asks != "positive":
        for name in vote.labels:
          self.assertIn(name.casefold(), json_text(text).casefold())


def json_text(text):
  """The text with JSON's escapes resolved, as far as it is JSON."""
  try:
    return json.dumps(
      json.loads(text.strip().removeprefix("```json").removesuffix("```")),
      ensure_ascii=False,
    )
  except ValueError:
    return text


if __name__ == "__main__":
  absltest.main()
