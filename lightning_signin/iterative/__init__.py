"""Iterative magnitude pruning: train, prune, rewind, repeat."""

from lightning_signin.iterative.pruning import IterativePruning

__all__ = ["IterativePruning"]
