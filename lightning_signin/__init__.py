"""Train sparse networks from scratch with Sign-In (arXiv:2504.12801)."""

from typing import TYPE_CHECKING

from lightning_signin._version import __version__
from lightning_signin.core.kinds import add_kind
from lightning_signin.core.mirror import mirror_steps
from lightning_signin.core.plain_view import plain_view
from lightning_signin.core.weight_decay import decay_theta
from lightning_signin.errors import SignInError
from lightning_signin.objective.training_data import TrainingData
from lightning_signin.updates import MaskUpdates
from lightning_signin.updates.sparse_state import load_sparse_state, sparse_state
from lightning_signin.verbs.model import effective_weights, masks, merge_, rescale_, sparsify
from lightning_signin.weightfiles.saved import masks_from_file
from lightning_signin.weightfiles.transplants import flip_signs_, transplant_

if TYPE_CHECKING:
    from lightning_signin.callback import SignInCallback
    from lightning_signin.iterative import IterativePruning
    from lightning_signin.report.compute_table import compute_table

__all__ = [
    "IterativePruning",
    "MaskUpdates",
    "SignInCallback",
    "SignInError",
    "TrainingData",
    "__version__",
    "add_kind",
    "compute_table",
    "decay_theta",
    "effective_weights",
    "flip_signs_",
    "load_sparse_state",
    "masks",
    "masks_from_file",
    "merge_",
    "mirror_steps",
    "plain_view",
    "rescale_",
    "sparse_state",
    "sparsify",
    "transplant_",
]


def __getattr__(name: str) -> object:
    if name == "SignInCallback":  # only here is lightning imported: plain PyTorch users go without
        from lightning_signin.callback import SignInCallback

        return SignInCallback
    if name == "IterativePruning":
        from lightning_signin.iterative import IterativePruning

        return IterativePruning
    if name == "compute_table":
        from lightning_signin.report.compute_table import compute_table

        return compute_table
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
