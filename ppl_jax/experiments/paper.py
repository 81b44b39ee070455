"""The figures of arXiv 2503.05620, to stand beside ours. All in percent."""

SOURCE = "arXiv 2503.05620"

# Intent detection on data that is not public: accuracy by share of gold.
TABLE1_GOLD = (0.01, 0.05, 0.1, 0.25)
TABLE1 = {
  "fine-tune only": (27.3, 29.5, 34.7, 69.6),
  "pointwise": (31.8, 33.4, 47.2, 77.3),
  "pairwise": (38.4, 45.8, 52.1, 78.4),
}

# Accuracy; of the last two, joint accuracy of the dialogue state.
TABLE23_COLUMNS = (
  "LLM itself",
  "FnCTOD",
  "ToD-BERT fine-tuned",
  "FLAN-T5-XXL",
  "pairwise, then fine-tuned",
)
TABLE23 = {
  "meld": (74.25, 68.84, 80.30, 75.72, 88.09),
  "iemocap": (76.39, 61.30, 87.88, 82.62, 90.31),
  "dailydialog": (70.39, 66.03, 72.40, 68.08, 76.50),
  "mrda": (62.82, 81.93, 88.4, 60.47, 89.95),
  "dyda_da": (71.25, 74.82, 79.14, 68.66, 85.11),
  "bt_oasis": (32.85, 52.76, 59.24, 17.13, 69.62),
  "sgd": (60.7, 63.9, 42.5, None, 47.3),
  "multiwoz": (27.0, 37.9, 16.4, None, 25.5),
}

# Calibration error of the first and of thirty votes.
FIGURE3 = {1: 0.22, 30: 0.17}
