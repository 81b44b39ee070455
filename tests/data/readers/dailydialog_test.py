import contextlib
import functools
import http.server
import io
import pathlib
import tempfile
import threading
import zipfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from ppl_jax.data import dialogues
from ppl_jax.data.readers import dailydialog

# Our own dialogues, in the layout of the originals: ` __eou__` after the last
# utterance too, a trailing blank after the last label.
TEXTS = {
  "train": [
    "Is the kettle on ? __eou__ It is . Would you cut the bread ? __eou__"
    " I ’ ll do it . __eou__",
    "Two tickets , please . __eou__ Here you are.Enjoy the film ! __eou__",
    "Two tickets , please . __eou__ Here you are.Enjoy the film ! __eou__",
  ],
  "validation": ["Did you sleep ? __eou__ Hardly 。 __eou__"],
  "test": [
    "Two tickets , please . __eou__ Here you are.Enjoy the film ! __eou__"
  ],
}
ACTS = {
  "train": ["2 3 4 ", "3 1 ", "3 4 "],
  "validation": ["2 1 "],
  "test": ["3 1 "],
}
EMOTIONS = {
  "train": ["0 0 4 ", "0 4 ", "0 0 "],
  "validation": ["0 5 "],
  "test": ["0 6 "],
}


def _files():
  """From path in the source folder to content."""
  files = {}
  for split in dialogues.SPLITS:
    for kind, lines in (("", TEXTS), ("act_", ACTS), ("emotion_", EMOTIONS)):
      content = "".join(line + "\n" for line in lines[split])
      files[f"{split}/dialogues_{kind}{split}.txt"] = content
  return files


def _zip(members):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return buffer.getvalue()


def _archive(files):
  """As published: one archive a split, in one archive."""
  inner = {
    split: {n: c for n, c in files.items() if n.startswith(f"{split}/")}
    for split in dialogues.SPLITS
  }
  members = {
    f"ijcnlp_dailydialog/{split}.zip": _zip(inner[split]) for split in inner
  }
  return _zip({"ijcnlp_dailydialog/readme.txt": "ours", **members})


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    pass


class DailyDialogTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.source = self.root / "source"
    for name, content in _files().items():
      self._write(name, content)

  def _write(self, name, content):
    path = self.source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8"))

  def _load(self, **changes):
    asked = {"source": self.source, "data_dir": self.root / "prepared"}
    return dialogues.load("dailydialog", **{**asked, **changes})

  @contextlib.contextmanager
  def _server(self, content):
    """The reader's address is that of a server here, with one file."""
    folder = self.root / "served"
    folder.mkdir(exist_ok=True)
    (folder / "ijcnlp_dailydialog.zip").write_bytes(content)
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
      thread = threading.Thread(target=server.serve_forever)
      thread.start()
      url = f"http://127.0.0.1:{server.server_port}/ijcnlp_dailydialog.zip"
      try:
        with (
          mock.patch.object(dailydialog, "URL", url),
          mock.patch.dict("os.environ", {"no_proxy": "127.0.0.1"}),
        ):
          yield
      finally:
        server.shutdown()
        thread.join()

  def test_reads_texts_acts_and_ids(self):
    dataset = self._load()
    self.assertEqual(
      dataset.classes, ("inform", "question", "directive", "commissive")
    )
    self.assertEqual(
      {s: len(d) for s, d in dataset.splits.items()},
      {"train": 3, "validation": 1, "test": 1},
    )
    first, _, third = dataset.splits["train"]
    self.assertEqual(first.dialogue_id, "train-0")
    self.assertEqual(third.dialogue_id, "train-2")
    self.assertEqual(first.speakers, ("A", "B", "A"))
    self.assertEqual(
      first.texts,
      (
        "Is the kettle on ?",
        "It is . Would you cut the bread ?",
        "I ’ ll do it .",
      ),
    )
    np.testing.assert_array_equal(first.gold.argmax(1), [1, 2, 3])
    np.testing.assert_array_equal(first.gold.sum(1), [1, 1, 1])
    self.assertTrue(first.labelled.all())
    [only] = dataset.splits["validation"]
    self.assertEqual(only.dialogue_id, "validation-0")
    self.assertEqual(only.texts, ("Did you sleep ?", "Hardly 。"))

  def test_emotions_are_an_option(self):
    dataset = self._load(options={"labels": "emotion"})
    self.assertEqual(
      dataset.classes,
      ("none", "anger", "disgust", "fear", "happiness", "sadness", "surprise"),
    )
    self.assertNotEqual(dataset.key, self._load().key)
    gold = [d.gold.argmax(1).tolist() for d in dataset.splits["train"]]
    self.assertEqual(gold, [[0, 0, 4], [0, 4], [0, 0]])

  def test_questions_and_directives_have_an_intent(self):
    dataset = self._load(options={"labels": "intent"})
    self.assertEqual(dataset.classes, ("intent",))
    gold = [d.gold[:, 0].tolist() for d in dataset.splits["train"]]
    self.assertEqual(gold, [[1, 1, 0], [1, 0], [1, 0]])
    self.assertTrue(all(d.labelled.all() for d in dataset.splits["train"]))

  def test_repeated_texts_are_kept_unless_dropped(self):
    self.assertLen(self._load().splits["train"], 3)
    dropped = self._load(drop_leaks=True)
    # Ids still count the lines of the file; test keeps its dialogue.
    self.assertEqual(
      [d.dialogue_id for d in dropped.splits["train"]], ["train-0"]
    )
    self.assertLen(dropped.splits["test"], 1)

  def test_no_line_feed_at_the_end_and_crlf_are_fine(self):
    files = _files()
    self._write("test/dialogues_test.txt", TEXTS["test"][0])
    name = "train/dialogues_train.txt"
    self._write(name, files[name].replace("\n", "\r\n"))
    name = "train/dialogues_act_train.txt"
    self._write(name, files[name].replace(" \n", "\r\n"))
    dataset = self._load()
    self.assertEqual(
      dataset.splits["train"][1].texts,
      ("Two tickets , please .", "Here you are.Enjoy the film !"),
    )
    self.assertLen(dataset.splits["test"], 1)

  def test_only_a_line_feed_ends_a_line(self):
    self._write(
      "test/dialogues_test.txt",
      "Well\u2028now\x85then\x0cor\rnever ? __eou__ No . __eou__\n",
    )
    [only] = self._load().splits["test"]
    self.assertEqual(
      only.texts, ("Well\u2028now\x85then\x0cor\rnever ?", "No .")
    )

  @parameterized.parameters(
    # The known fault of one published edition: an utterance without a label.
    (
      "train/dialogues_act_train.txt",
      "2 3 4 \n3 \n3 4 \n",
      r"dialogues_train\.txt, line 2: .* got 2 utterances and 1 labels in"
      r" dialogues_act_train\.txt",
    ),
    (
      "train/dialogues_act_train.txt",
      "2 3 4 \n3 1 \n",
      r"as many lines, got no line 3 in .*dialogues_act_train\.txt",
    ),
    (
      "train/dialogues_train.txt",
      TEXTS["train"][0] + "\n",
      r"as many lines, got no line 2 in .*dialogues_train\.txt",
    ),
    (
      "test/dialogues_act_test.txt",
      "3 5 \n",
      r"dialogues_act_test\.txt, line 1: act labels must be of 1, 2, 3, 4;"
      r" got '5'",
    ),
    (
      "test/dialogues_test.txt",
      "One . __eou__ __eou__\n",
      r"dialogues_test\.txt, line 1: every utterance must have a text",
    ),
    (
      "test/dialogues_test.txt",
      "\n",
      r"dialogues_test\.txt, line 1: every utterance must have a text",
    ),
  )
  def test_refuses_faulty_files(self, name, content, message):
    self._write(name, content)
    with self.assertRaisesRegex(ValueError, message):
      self._load()

  def test_missing_files_name_folder_file_and_remedy(self):
    (self.source / "test/dialogues_act_test.txt").unlink()
    message = (
      rf"got '{self.source}', which lacks 'test/dialogues_act_test\.txt':"
    )
    with self.assertRaisesRegex(ValueError, message):
      self._load()
    with self.assertRaisesRegex(ValueError, r"config\.dataset\.source"):
      self._load(source=self.root / "nowhere")
    # The acts' absence does not matter to the emotions.
    self.assertLen(self._load(options={"labels": "emotion"}).splits["test"], 1)

  @parameterized.parameters({"labels": "topic"}, {"label": "act"})
  def test_refuses_options(self, **options):
    with self.assertRaisesRegex(ValueError, "one of act, emotion, intent"):
      self._load(options=options)

  def test_downloads_once(self):
    with self._server(_archive(_files())):
      downloaded = self._load(source="")
    self.assertEqual(downloaded.key, self._load().key)
    # The server is gone: the second time needs no network.
    again = self._load(source="", options={"labels": "emotion"})
    self.assertLen(again.splits["train"], 3)

  @parameterized.named_parameters(
    ("web_page", b"<html>moved</html>"),
    ("other_archive", _zip({"readme.txt": "ours"})),
    (
      "a_file_less",
      _archive({n: c for n, c in _files().items() if "emotion_test" not in n}),
    ),
  )
  def test_downloading_something_else_keeps_nothing(self, content):
    with (
      self._server(content),
      self.assertRaisesRegex(
        ValueError,
        r"must hold ijcnlp_dailydialog/.*"
        r"config\.dataset\.source",
      ),
    ):
      self._load(source="")
    folder = self.root / "prepared/dailydialog/download"
    self.assertEqual(list(folder.iterdir()), [])

  def test_no_network_names_the_remedy(self):
    with self._server(b""):
      gone = dailydialog.URL
    for url in (gone, "http://no-such-host.invalid/a.zip"):
      with (
        mock.patch.object(dailydialog, "URL", url),
        mock.patch.dict("os.environ", {"no_proxy": "*"}),
        self.assertRaisesRegex(ConnectionError, r"config\.dataset\.source"),
      ):
        self._load(source="")


if __name__ == "__main__":
  absltest.main()
