"""Rows of a table, and the cells and values that a grid makes of them."""

import contextlib
import io
import pathlib
from unittest import mock

from absl.testing import absltest

from configs import common
from ppl_jax.data import dialogues
from ppl_jax.experiments import cells, grid, methods

SOFTMAX = ["soft pairs", "softmax on shares", "plurality labels", "default"]


def dataset(task, classes):
  return dialogues.Dataset(
    "", tuple(classes), task, "", pathlib.Path(), splits={}
  )


class MethodsTest(absltest.TestCase):
  def test_rows_are_in_the_order_of_the_table(self):
    some = dataset("single_label", "abc")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      rows = methods.variants(list(reversed(SOFTMAX)), some)
    self.assertEqual([row.name for row in rows], SOFTMAX)
    self.assertEqual(printed.getvalue(), "")
    self.assertEqual(methods.reference(rows), "default")
    self.assertEqual(methods.reference(rows[:2]), "softmax on shares")

  def test_softmax_is_left_out_where_classes_are_decided_one_by_one(self):
    for task, classes in (("multi_label", "abc"), ("single_label", "a")):
      with contextlib.redirect_stdout(io.StringIO()) as printed:
        rows = methods.variants(SOFTMAX, dataset(task, classes))
      self.assertEqual([row.name for row in rows], ["soft pairs", "default"])
      self.assertIn(
        "Left out: softmax on shares, plurality labels: a softmax has no place",
        printed.getvalue(),
      )
      with self.assertRaisesRegex(ValueError, "for the dataset's task"):
        methods.variants(["swapped pairs"], dataset(task, classes))

  def test_unknown_rows_are_refused(self):
    for names in (["pairwise"], []):
      with self.assertRaisesRegex(ValueError, "--methods must be some of fine"):
        methods.variants(names, dataset("single_label", "abc"))

  def test_all_are_of_the_config(self):
    config = common.get_config().lock()
    with mock.patch.object(cells.commands, "CONFIG", mock.Mock(value=config)):
      for name, overrides in methods.METHODS.items():
        made = cells._config(cells.Cell(name, overrides, {}))
        self.assertEqual(
          made.pretrain.terms.pairs,
          1.0 if name == "soft pairs + softmax" else None,
        )


class GridTest(absltest.TestCase):
  def test_cells_of_some_shares(self):
    variants = [
      grid.Variant("a + b", {"pretrain.objective": "softmax"}),
      grid.Variant("gold", {"baselines": True}, votes=False),
    ]
    with mock.patch.object(grid, "seeds", return_value=[3]):
      made = grid.make_cells(variants, pathlib.Path("/f"), [0, 0.1])
    self.assertEqual(
      [(cell.name, cell.start) for cell in made],
      [
        ("a-b-gold0-seed3", ""),
        ("a-b-gold0.1-seed3", "a-b-gold0-seed3"),
        ("gold-gold0.1-seed3", ""),
      ],
    )
    self.assertEqual(
      [cell.overrides["baselines"] for cell in made], [False, False, True]
    )
    self.assertEqual(made[1].overrides["init_from"], "/f/cells/a-b-gold0-seed3")
    failed = cells.Outcome(made[0], pathlib.Path("/f"), "why")
    rows = grid.result_rows(made, {made[0].name: failed})
    self.assertEqual(
      [row["status"] for row in rows], ["failed", "waiting", "waiting"]
    )
    self.assertEqual(grid.progress(rows), "0 of 3 cells finished.")
    self.assertEqual(grid.values(rows, "a + b", 0), {})
    done = {"status": "finished", "accuracy": 0.5, "commit": "one"}
    rows = [{**rows[0], **done}, {**rows[1], **done, "commit": "other+"}]
    self.assertEqual(grid.values(rows, "a + b", 0.1), {3: 0.5})
    self.assertIn("of 2 commits, one, other+", grid.progress(rows))


if __name__ == "__main__":
  absltest.main()
