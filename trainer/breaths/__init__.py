"""How breaths are found and poor recordings refused, scored on annotated corpora."""
