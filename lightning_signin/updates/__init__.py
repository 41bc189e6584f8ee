"""Masks that move: update rules, one file per method, their schedules, and the one mechanism that carries them out."""

from lightning_signin.updates.acdc import ACDC
from lightning_signin.updates.engine import MaskUpdates
from lightning_signin.updates.gmp import GMP, OneShot
from lightning_signin.updates.mest import MEST
from lightning_signin.updates.resolve import UPDATES, parse_update
from lightning_signin.updates.rigl import RigL
from lightning_signin.updates.rule import Layer, Moment, UpdateRule
from lightning_signin.updates.schedule import Schedule
from lightning_signin.updates.schedules import Constant, Cosine, Cubic, Once, Phases, Stages
from lightning_signin.updates.set import SET
from lightning_signin.updates.srigl import SRigL

__all__ = [
    "ACDC",
    "GMP",
    "MEST",
    "SET",
    "UPDATES",
    "Constant",
    "Cosine",
    "Cubic",
    "Layer",
    "MaskUpdates",
    "Moment",
    "Once",
    "OneShot",
    "Phases",
    "RigL",
    "SRigL",
    "Schedule",
    "Stages",
    "UpdateRule",
    "parse_update",
]
