"""One module a dataset, found by its name: see `ppl_jax.data.dialogues`."""
