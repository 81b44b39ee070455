import pathlib

from absl.testing import absltest, parameterized

from configs import common

_ROOT = pathlib.Path(__file__).parents[1]
_CONFIGS = sorted(
  path.stem
  for path in (_ROOT / "configs").glob("*.py")
  if path.stem != "common"
)


def _keys(config, prefix=""):
  for key, value in config.items():
    if hasattr(value, "items"):
      yield from _keys(value, f"{prefix}{key}.")
    yield f"{prefix}{key}"


class ConfigsTest(parameterized.TestCase):
  def test_there_are_configs(self):
    self.assertContainsSubset({"dailydialog", "jsonl", "quickstart"}, _CONFIGS)

  @parameterized.parameters(_CONFIGS)
  def test_builds_and_has_no_key_that_nothing_reads(self, name):
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    config = module.get_config()
    free = ("dataset.options.", "segments.speaker_tokens.", "votes.counts_as.")
    known = set(_keys(common.get_config()))
    for key in _keys(config):
      self.assertTrue(key in known or key.startswith(free), key)
    # The first lines say which command to type.
    self.assertIn(f"--config=configs/{name}.py", module.__doc__)

  def test_every_default_is_read_somewhere(self):
    code = "".join(
      path.read_text()
      for folder in ("ppl_jax", "labeling")
      for path in (_ROOT / folder).rglob("*.py")
    )
    for key in _keys(common.get_config()):
      self.assertRegex(code, rf"\b{key.rsplit('.', 1)[-1]}\b", key)


if __name__ == "__main__":
  absltest.main()
