"""What is saved is what was given, whatever becomes of it afterwards."""

import copy
import pathlib
import tempfile
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from ppl_jax import checkpoint


class StateCheckpointsTest(absltest.TestCase):
  def test_meta_may_change_while_it_is_saved(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    checkpoints = checkpoint.StateCheckpoints(folder)
    self.assertIsNone(checkpoints.meta())
    meta = {"history": [{"step": 3}], "best": 3.0}
    before = copy.deepcopy(meta)
    state = {"weight": jnp.arange(4.0)}
    save = checkpoints._manager.save

    def save_later_on(*args, **kwargs):
      # Orbax writes it in a thread, and may come to it this late.
      meta["history"].append({"step": 7})
      meta["best"] = -1.0
      return save(*args, **kwargs)

    with mock.patch.object(checkpoints._manager, "save", save_later_on):
      checkpoints.save(7, state, meta)
    checkpoints.close()
    checkpoints = checkpoint.StateCheckpoints(folder)
    self.assertEqual(checkpoints.meta(), before)
    restored = checkpoints.restore(state)
    np.testing.assert_array_equal(restored["weight"], state["weight"])
    checkpoints.close()


if __name__ == "__main__":
  absltest.main()
