"""Stages 1 and 2: from prompts and votes to scores, without JAX."""
