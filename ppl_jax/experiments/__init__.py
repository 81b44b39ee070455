"""The paper's tables and figures, and ablations: one command each."""
