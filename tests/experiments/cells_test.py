import contextlib
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest

from configs import common
from ppl_jax.data import dialogues
from ppl_jax.experiments import cells


class CellsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_one_command_at_a_time(self):
    with (
      cells._alone(self.folder),
      self.assertRaisesRegex(ValueError, "One command at a time"),
      cells._alone(self.folder),
    ):
      pass
    with cells._alone(self.folder):
      pass

  def test_another_config_is_refused(self):
    config = common.get_config()
    config.segments.window = 2
    path = self.folder / "config.json"
    cells._check_same(config, self.folder)  # nothing there
    values = json.loads(config.to_json())
    values["batch"]["shards"] = 4  # of the machine
    values["init_from"] = "moved"
    values["new"] = 1
    path.write_text(json.dumps(values))
    (self.folder / "data.json").write_text("{}")
    cells._check_same(config, self.folder)
    config.segments.window = 3
    with self.assertRaisesRegex(
      ValueError, "segments.window: 2 there, 3 here. Name another --folder"
    ):
      cells._check_same(config, self.folder)

  def test_other_scores_under_the_same_name_are_refused(self):
    config = common.get_config()
    scores = self.folder / "scores.parquet"
    scores.write_bytes(b"before")
    config.scores = str(scores)
    (self.folder / "config.json").write_text(config.to_json())
    data = dialogues.config_files(config)
    (self.folder / "data.json").write_text(json.dumps(data))
    cells._check_same(config, self.folder)
    scores.write_bytes(b"after")
    with self.assertRaisesRegex(
      ValueError, "before the files of config.scores changed"
    ):
      cells._check_same(config, self.folder)

  def test_other_dialogues_under_the_same_name_are_refused(self):
    source = self.folder / "data"
    source.mkdir()
    line = (
      '{"dialogue_id": "a", "utterances": [{"speaker": "s", "text": "%s"}]}'
    )
    (source / "train.jsonl").write_text(line % "before")
    config = common.get_config()
    config.dataset.name = "jsonl"
    config.dataset.source = str(source)
    config.dataset.classes = ("yes", "no")
    config.dataset.data_dir = str(self.folder / "prepared")
    (self.folder / "config.json").write_text(config.to_json())
    key = dialogues.load_config(config.dataset).key
    (self.folder / "data.json").write_text(json.dumps({"config.dataset": key}))
    cells._check_same(config, self.folder)
    (source / "train.jsonl").write_text(line % "after")
    cells._dataset_key.cache_clear()  # another command
    with self.assertRaisesRegex(ValueError, "files of config.dataset changed"):
      cells._check_same(config, self.folder)

  def test_a_cell_says_what_code_ran_it(self):
    cell = cells.Cell("c", {}, {})
    self.assertEqual(cells.Outcome(cell, self.folder).commit, "")
    for changed, end in ((False, ""), (True, "+")):
      facts = {"git": {"commit": "0123456789abcdef", "changed": changed}}
      outcome = cells.Outcome(cell, self.folder, facts=facts)
      self.assertEqual(outcome.commit, f"0123456789ab{end}")

  def test_fine_tuning_is_nothing_to_a_cell_without_gold(self):
    config = common.get_config()
    path = self.folder / "config.json"
    (self.folder / "data.json").write_text("{}")
    for theirs, ours, refused in ((0.0, 0.0, 0), (0.1, 0.1, 1), (0.1, 0.0, 1)):
      config.finetune.gold_fraction = theirs
      values = json.loads(config.to_json())
      values["finetune"]["epochs"] = 99
      path.write_text(json.dumps(values))
      config.finetune.gold_fraction = ours
      with (
        self.assertRaisesRegex(ValueError, "finetune")
        if refused
        else contextlib.nullcontext()
      ):
        cells._check_same(config, self.folder)

  def test_overrides_must_be_the_configs(self):
    config = common.get_config().lock()
    with mock.patch.object(cells.commands, "CONFIG", mock.Mock(value=config)):
      cell = cells.Cell("a", {"pairs.alpha": 0.25, "seed": 3}, {})
      self.assertEqual(cells._config(cell).pairs.alpha, 0.25)
      for wrong in ({"pairs.beta": 1}, {"seed": "three"}):
        with self.assertRaisesRegex(ValueError, "Cell a must set values that"):
          cells._config(cells.Cell("a", wrong, {}))

  def test_parse_overrides(self):
    self.assertEqual(
      cells.parse_overrides(["a.b=1e-4", "c=text", "d=(1, 2)", "e="], "flag"),
      {"a.b": 1e-4, "c": "text", "d": (1, 2), "e": ""},
    )
    with self.assertRaisesRegex(
      ValueError, "--flag must be KEY=VALUE.*got 'a'"
    ):
      cells.parse_overrides(["a"], "flag")

  def test_last_lines(self):
    log = self.folder / "log"
    bars = "".join(f"\r{i} %" for i in range(9_000))
    log.write_text(f"start\n{bars}\n\nend \n")
    self.assertEqual(cells.last_lines(log, 2), ["8999 %", "end"])
    self.assertEqual(cells.last_lines(log, 1), ["end"])

  def test_time_left_is_by_kind(self):
    def cell(start):
      return cells.Cell("c", {}, {}, start)

    def done(start, seconds):
      facts = {"seconds": seconds}
      return cells.Outcome(cell(start), self.folder, facts=facts)

    self.assertEqual(cells._time_left([cell("")], []), "")
    outcomes = [done("", 600.0), done("a", 60.0), done("a", 120.0)]
    self.assertEqual(
      cells._time_left([cell(""), cell("a"), cell("a")], outcomes),
      "about 13 min left, ",
    )
    self.assertEqual(
      cells._time_left([cell("a")], [done("", 45.0)]), "about 45 s left, "
    )


if __name__ == "__main__":
  absltest.main()
