"""Corpora to fit to evaluate: the training side, on torch."""
