"""What a model reaches: outcomes, readings with intervals, comparisons; it knows no training."""
