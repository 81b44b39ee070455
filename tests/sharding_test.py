"""Training on many devices is training on one, and what it sends about."""

import pathlib
import pickle
import sys
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import commands
import sharded_steps

from ppl_jax import sharding

ONE = ("1x1", "1x1+5+remat")
EIGHT = ("8x1", "4x2", "2x4", "4x2+2")
TWO_PROCESSES = ("4x2",)
# Of the global gradient norm, for every tensor at every step: rounding, over
# STEPS steps in which the parameters drift apart by it.
BOUND = 2e-6


class StepsTest(absltest.TestCase):
  """One test, since its results serve many looks and are dear to come by."""

  def test_many_devices_are_one(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.results = {}
    for title, names, devices, processes in (
      ("one", ONE, 1, 1),
      ("eight", EIGHT, 8, 1),
      ("processes", TWO_PROCESSES, 4, 2),
    ):
      script = [
        sys.executable,
        "tests/sharded_steps.py",
        folder / title,
        *names,
      ]
      for process in commands.on_fake_devices(script, devices, processes):
        self.addCleanup(process.kill)
        output, _ = process.communicate(timeout=300)
        self.assertEqual(process.returncode, 0, output)
      for name, result in pickle.loads((folder / title).read_bytes()).items():
        self.results[title, name] = result
    for title, name in self.results:
      with self.subTest(f"{title} {name}"):
        self.check_losses_and_gradients(title, name)
    self.check_sizes_tell_axes_apart()
    for name in EIGHT:
      with self.subTest(name):
        self.check_only_parameters_and_scalars_are_sent(name)
    for name, parts in (("8x1", 1), ("4x2", 2), ("2x4", 4)):
      with self.subTest(name):
        self.check_parameters_are_cut(name, parts)

  def check_losses_and_gradients(self, title, name):
    """They are those of one device."""
    ours, one = self.results[title, name], self.results["one", ONE[0]]
    self.assertLen(ours["losses"], sharded_steps.STEPS)
    self.assertGreater(one["losses"][0]["loss_pairs"], 0.0)
    worst = 0.0
    for t, losses in enumerate(ours["losses"]):
      for key, value in losses.items():
        self.assertAlmostEqual(
          value / one["losses"][t][key], 1.0, delta=1e-5, msg=f"{key} at {t}"
        )
      expected = one["gradients"][t]
      norm = np.sqrt(sum((g**2).sum() for g in expected.values()))
      self.assertEqual(ours["gradients"][t].keys(), expected.keys())
      for key, gradient in ours["gradients"][t].items():
        error = np.abs(gradient - expected[key]).max() / norm
        worst = max(worst, error)
        self.assertLess(error, BOUND, f"{key} at {t}")
    print(f"{title} {name}: largest error {worst:.1e} of the gradient norm")

  def check_only_parameters_and_scalars_are_sent(self, name):
    result = self.results["eight", name]
    allowed = result["whole"] | result["cut"] | {()}
    sent = {
      (operation, tuple(n for n in shape if n != 1))
      for operation, shape in result["collectives"]
    }
    self.assertContainsSubset({"all-reduce"}, {o for o, _ in sent})
    self.assertEmpty([s for s in sent if s[1] not in allowed])
    # The look at the program would find more: evaluation gathers its logits.
    shapes = [shape for _, shape in result["collectives_of_logits"]]
    self.assertTrue(any(sharded_steps.N in shape for shape in shapes), shapes)

  def check_sizes_tell_axes_apart(self):
    local = sharded_steps.S // 8
    sizes = [getattr(sharded_steps, name) for name in "SNTMDK"]
    sizes += [local, local // 2, local * sizes[1], local * sizes[1] * sizes[2]]
    sizes.append(local * sharded_steps.M)
    parameters = set()
    for name in EIGHT:
      result = self.results["eight", name]
      parameters |= {n for s in result["whole"] | result["cut"] for n in s}
    self.assertEmpty(parameters & set(sizes))

  def check_parameters_are_cut(self, name, parts):
    cut = self.results["eight", name]["cut"]
    encoder = sharded_steps.ENCODER
    width, inner = encoder.hidden_size, encoder.intermediate_size
    for shape in (
      (encoder.vocab_size, width // parts),
      (width // parts, width),
      (inner // parts, width),
      (width // parts, inner),
    ):
      self.assertIn(shape, cut)


class MeshTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"data": 3}, "must be the number of devices, 1, got 3 and 1"),
    ({"data": -1, "fsdp": -1}, "got -1 and -1"),
    ({"data": 0}, "got 0 and 1"),
    ({"accumulation": 2}, "1 x 2, got 1"),
  )
  def test_sizes_that_do_not_fit(self, sizes, message):
    with self.assertRaisesRegex(ValueError, message):
      sharding.make_mesh(1, **sizes)

  def test_the_rest_is_found(self):
    mesh = sharding.make_mesh(1, data=1, fsdp=-1)
    self.assertEqual(mesh.size, jax.device_count())


if __name__ == "__main__":
  absltest.main()
