"""Breath cycles: where they are, whether they can be judged, and a simulator of breathing."""
