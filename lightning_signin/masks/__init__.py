"""Masks: which weights are kept (`scores`), how many a layer (`distributions`), joined in `build_masks`."""

from lightning_signin.masks.build import build_masks
from lightning_signin.masks.distributions import DISTRIBUTIONS, budget
from lightning_signin.masks.scores import SCORES

__all__ = ["DISTRIBUTIONS", "SCORES", "budget", "build_masks"]
