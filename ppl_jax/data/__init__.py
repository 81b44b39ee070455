"""Dialogues, segments and scores (no JAX), and the Grain pipeline."""
