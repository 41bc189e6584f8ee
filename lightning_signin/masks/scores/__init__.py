"""Which weights are kept: scores, higher is kept. One class a score, one file a method, one row in `SCORES`.

A score is anything that is called with a `Task` and returns a score tensor for each of its weights. Its attribute
``distribution`` names the one that its paper uses, which is taken where none is given ("balanced" without one).
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
