"""A run from its settings to its results: set-up, steps, checkpoints, evaluation."""
