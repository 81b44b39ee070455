"""The student: a BERT encoder, its scorer, and weights in and out."""
