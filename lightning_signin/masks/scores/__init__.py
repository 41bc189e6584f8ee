"""Which weights are kept: those with the highest scores. One class per score, one file per method, one row in `SCORES`.

A score is any callable that takes a `Task` and returns a score tensor for each of its weights. Its attribute
``distribution`` names the one that its paper uses; it is the default ("balanced" without the attribute).
"""

from lightning_signin.masks.scores.basic import Magnitude, Random
from lightning_signin.masks.scores.grasp import GraSP
from lightning_signin.masks.scores.npb import NPB
from lightning_signin.masks.scores.phew import PHEW
from lightning_signin.masks.scores.prospr import ProsPr
from lightning_signin.masks.scores.resolve import SCORES, Score, parse_score
from lightning_signin.masks.scores.snip import FORCE, SNIP, IterativeSNIP
from lightning_signin.masks.scores.synflow import SynFlow

__all__ = [
    "FORCE",
    "NPB",
    "PHEW",
    "SCORES",
    "SNIP",
    "GraSP",
    "IterativeSNIP",
    "Magnitude",
    "ProsPr",
    "Random",
    "Score",
    "SynFlow",
    "parse_score",
]
