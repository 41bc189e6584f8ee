"""Measurements of a run: sign flips and scaling."""

from lightning_signin.metrics.signs import flips_by_weight, mean_scaling, signs, summary

__all__ = ["flips_by_weight", "mean_scaling", "signs", "summary"]
