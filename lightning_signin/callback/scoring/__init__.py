"""Scoring masks with the user's own training step and batches, on a copy and without side effects."""
