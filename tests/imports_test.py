"""Who may import whom: the rules of the design, held by reading the code."""

import ast
import pathlib
import subprocess
import sys

from absl.testing import absltest, parameterized

import labeling
import ppl_jax

ROOT = pathlib.Path(ppl_jax.__file__).parents[1]
PACKAGES = ("ppl_jax", "labeling")
HEAVY = ("jax", "jaxlib", "flax", "torch", "tensorflow", "grain")

# Of our own packages, a module may import these and what is in them, and
# its own package; the nearest rule holds. For modules that are not listed there
# are other tests below.
ALLOWED = {
  # `inputs` reads and checks all that a run needs; the rest is `train`'s.
  "ppl_jax.main": {
    "ppl_jax.train",
    "ppl_jax.claim",
    "ppl_jax.inputs",
    "ppl_jax.commands",
    "ppl_jax.distributed",
    "ppl_jax.memory",
  },
  "ppl_jax.distributed": set(),
  "ppl_jax.memory": set(),
  "ppl_jax.cores": set(),
  "ppl_jax.predict": {
    "ppl_jax.predictor",
    "ppl_jax.files",
    "ppl_jax.live",
    "ppl_jax.jax_backend",
    "ppl_jax.commands",
    "ppl_jax.memory",
  },
  "ppl_jax.live": {"ppl_jax.predictor", "ppl_jax.data"},
  "ppl_jax.logits": set(),
  "ppl_jax.files": {"ppl_jax.predictor", "ppl_jax.data"},
  "ppl_jax.onnx_backend": {"ppl_jax.cores", "ppl_jax.data"},
  # Loads one of the backends, whichever the folder asks for.
  "ppl_jax.predictor": {
    "ppl_jax.data",
    "ppl_jax.jax_backend",
    "ppl_jax.logits",
    "ppl_jax.onnx_backend",
  },
  "ppl_jax.jax_backend": {
    "ppl_jax.checkpoint",
    "ppl_jax.cores",
    "ppl_jax.models",
    "ppl_jax.student",
  },
  "ppl_jax.commands": set(),
  "ppl_jax.train_step": {
    "ppl_jax.losses",
    "ppl_jax.models",
    "ppl_jax.objective",
    "ppl_jax.sharding",
  },
  "ppl_jax.objective": {"ppl_jax.losses"},
  "ppl_jax.baselines": {
    "ppl_jax.calibration",
    "ppl_jax.logits",
    "ppl_jax.metrics",
  },
  "ppl_jax.fit_gold": {"ppl_jax.calibration"},
  "ppl_jax.losses": {"ppl_jax.pairs"},
  "ppl_jax.pairs": set(),
  "ppl_jax.metrics": {"ppl_jax.calibration"},
  "ppl_jax.calibration": set(),
  "ppl_jax.models": {"ppl_jax.models"},
  "ppl_jax.data": {"ppl_jax.data", "ppl_jax.calibration"},
  "ppl_jax.data.inspect": {"ppl_jax.data", "ppl_jax.commands"},
  # Runs are started as commands, so that this stays light.
  "ppl_jax.experiments": {
    "ppl_jax.calibration",
    "ppl_jax.commands",
    "ppl_jax.data",
    "ppl_jax.experiments",
    "ppl_jax.metrics",
    "ppl_jax.predictions",
  },
  "labeling": {
    "labeling",
    "ppl_jax.calibration",
    "ppl_jax.commands",
    "ppl_jax.data",
  },
}
# These take plain arguments.
WITHOUT_CONFIG = ("losses", "pairs", "metrics", "models")


def imports(source, module, is_package=False):
  """The absolute names that a module's source imports, at any depth."""
  package = module.split(".") if is_package else module.split(".")[:-1]
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        above = package[: len(package) - node.level + 1]
        base = ".".join([*above, *([node.module] if node.module else [])])
      found.update(f"{base}.{alias.name}" for alias in node.names)
  return found


def is_in(name, packages):
  return any(name == p or name.startswith(p + ".") for p in packages)


def modules():
  """From a module's name to what it imports, for all that is there."""
  found = {}
  for package in PACKAGES:
    for file in sorted((ROOT / package).rglob("*.py")):
      parts = file.relative_to(ROOT).with_suffix("").parts
      is_package = parts[-1] == "__init__"
      name = ".".join(parts[:-1] if is_package else parts)
      found[name] = imports(file.read_text("utf-8"), name, is_package)
  return found


MODULES = modules()


class ImportsTest(parameterized.TestCase):
  def test_the_reading_itself(self):
    source = """
import a.b, c
from d import e as f
from . import g
from .h import i
from .. import j
def later():
  from k.l import m
"""
    self.assertEqual(
      imports(source, "p.q.r"),
      {"a.b", "c", "d.e", "p.q.g", "p.q.h.i", "p.j", "k.l.m"},
    )
    self.assertIn("p.q.r.g", imports(source, "p.q.r", is_package=True))
    self.assertTrue(is_in("ppl_jax.data.scores", {"ppl_jax.data"}))
    self.assertFalse(is_in("ppl_jax.database", {"ppl_jax.data"}))
    self.assertContainsSubset(
      {"ppl_jax.data.dialogues", "labeling.scores"}, MODULES
    )

  @parameterized.parameters(*ALLOWED)
  def test_only_allowed_imports(self, rule):
    for name, imported in MODULES.items():
      if max((r for r in ALLOWED if is_in(name, {r})), default="") == rule:
        own = {i for i in imported if is_in(i, PACKAGES)}
        wrong = {i for i in own if not is_in(i, ALLOWED[rule])}
        self.assertEmpty(wrong, f"{name} imports {wrong}")

  def test_ppl_jax_does_not_import_labeling(self):
    for name, imported in MODULES.items():
      if is_in(name, {"ppl_jax"}):
        self.assertFalse(any(is_in(i, {"labeling"}) for i in imported), name)

  def test_only_main_imports_train_and_nobody_main(self):
    for name, imported in MODULES.items():
      if name != "ppl_jax.main":
        self.assertNotIn("ppl_jax.train", imported, name)
      self.assertNotIn("ppl_jax.main", imported, name)

  def test_only_the_pipeline_imports_grain(self):
    for name, imported in MODULES.items():
      if name != "ppl_jax.data.pipeline":
        self.assertFalse(any(is_in(i, {"grain"}) for i in imported), name)

  def test_labeling_does_not_import_the_pipeline(self):
    for name, imported in MODULES.items():
      if is_in(name, {"labeling"}):
        self.assertNotIn("ppl_jax.data.pipeline", imported, name)

  @parameterized.parameters(*WITHOUT_CONFIG)
  def test_plain_arguments_only(self, part):
    for name, imported in MODULES.items():
      if is_in(name, {f"ppl_jax.{part}"}):
        wrong = {i for i in imported if is_in(i, {"ml_collections", "absl"})}
        self.assertEmpty(wrong, name)

  def test_light_modules_load_nothing_heavy(self):
    light = [
      name
      for name in MODULES
      if is_in(
        name,
        {
          "labeling",
          "ppl_jax.calibration",
          "ppl_jax.data",
          "ppl_jax.experiments",
        },
      )
      and name != "ppl_jax.data.pipeline"
    ]
    self.assertContainsSubset(
      {"ppl_jax.data.segments", "ppl_jax.data.scores"}, light
    )
    program = f"""
import importlib, sys
from absl import flags
shared = set(flags.FLAGS)
for name in {light}:
  importlib.import_module(name)
  # Two commands may have a flag of one name: they are never one process.
  for flag in set(flags.FLAGS) - shared:
    delattr(flags.FLAGS, flag)
  loaded = [m for m in {HEAVY} if m in sys.modules]
  assert not loaded, f"{{name}} loads {{loaded}}"
"""
    run = subprocess.run(
      [sys.executable, "-c", program],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(run.returncode, 0, run.stderr)

  def test_reading_a_dataset_loads_nothing_heavy(self):
    # TFDS imports lazily, so that importing it proves too little.
    program = f"""
import json, pathlib, sys, tempfile
from ppl_jax.data import dialogues
with tempfile.TemporaryDirectory() as folder:
  utterances = [{{"speaker": "A", "text": "Is it late?", "label": "ask"}}]
  line = json.dumps({{"dialogue_id": "d", "utterances": utterances}})
  pathlib.Path(folder, "train.jsonl").write_text(line)
  dataset = dialogues.load(
    "jsonl", source=folder, data_dir=folder, classes=("ask",))
  assert dataset.splits["train"][0].texts == ("Is it late?",)
loaded = [m for m in {HEAVY} if m in sys.modules]
assert not loaded, loaded
"""
    run = subprocess.run(
      [sys.executable, "-c", program],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(run.returncode, 0, run.stderr)

  def test_labeling_is_the_one_beside_ppl_jax(self):
    self.assertEqual(pathlib.Path(labeling.__file__).parents[1], ROOT)


if __name__ == "__main__":
  absltest.main()
