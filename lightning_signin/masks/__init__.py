"""Masks: which weights are kept (`scores`), how many per layer (`distributions`), in which pattern (`structures`)."""

from lightning_signin.masks.build import build_masks
from lightning_signin.masks.distributions import DISTRIBUTIONS, budget
from lightning_signin.masks.scores import (
    FORCE,
    NPB,
    PHEW,
    SCORES,
    SNIP,
    GraSP,
    IterativeSNIP,
    Magnitude,
    ProsPr,
    Random,
    SynFlow,
)
from lightning_signin.masks.structures import NM, Blocks, ConstantFanIn, NMCap, Structure, Unstructured
from lightning_signin.masks.task import Task
from lightning_signin.objective.training_data import TrainingData

__all__ = [
    "DISTRIBUTIONS",
    "FORCE",
    "NM",
    "NPB",
    "PHEW",
    "SCORES",
    "SNIP",
    "Blocks",
    "ConstantFanIn",
    "GraSP",
    "IterativeSNIP",
    "Magnitude",
    "NMCap",
    "ProsPr",
    "Random",
    "Structure",
    "SynFlow",
    "Task",
    "TrainingData",
    "Unstructured",
    "budget",
    "build_masks",
]
