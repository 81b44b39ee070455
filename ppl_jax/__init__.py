"""Small calibrated dialogue classifiers from many LLM votes, in JAX."""
