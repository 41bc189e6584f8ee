"""Iterative magnitude pruning: train, prune, rewind, again."""

from lightning_signin.iterative.pruning import IterativePruning

__all__ = ["IterativePruning"]
