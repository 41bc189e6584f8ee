"""Modules that the user has made sparse in ``configure_model``, and possibly sharded with FSDP2."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_signin.arguments import Arguments, default, of_stage
from lightning_signin.callback.lightning_internals import loads_any_entries, saves_shards
from lightning_signin.callback.resuming import NOT_SPARSE, STATE_KEY, check_complete
from lightning_signin.callback.two_packages import in_both
from lightning_signin.core.sharded import EXPORT, has_shards, is_sharded
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.errors import SignInError
from lightning_signin.masks.distributions import budget
from lightning_signin.weightfiles.factor_state import check_factor_state

_ONE_FILE = "Pass ModelParallelStrategy(save_distributed_checkpoint=False): rank 0 writes one file."
_COMPARED = ("sparsity", "parametrization")


def check_one_file(trainer: Trainer) -> None:
    """Raise `SignInError` before a fit whose checkpoints would be folders of shards instead of whole weights."""
    strategy: Any = trainer.strategy
    if isinstance(strategy, in_both(ModelParallelStrategy)) and saves_shards(strategy):
        raise SignInError(
            "save_distributed_checkpoint=True writes folders in which every rank keeps its shards of the factors: they "
            f"are neither plain nor resumable here. {_ONE_FILE} `lightning-signin export CHECKPOINT --to ckpt` merges "
            "that file."
        )


def check_agreement(module: LightningModule, arguments: Arguments) -> None:
    """Check that the module's masks and factors agree with the callback's arguments.

    Args:
        module: A module after `sparsify`, complete.
        arguments: The arguments of the run. Since the module already has masks and factors, those that decide them must
            be left out, except ``sparsity`` and ``parametrization``, which are compared.

    Raises:
        SignInError: If they disagree, or ask for what a sharded module cannot do.
    """
    weights = sparse_weights(module)
    for weight in weights.values():  # `fully_shard` may have moved the parameters, but not their indices
        weight.storage.follow(lambda probe, device=weight.factors[0].device: probe.to(device))  # type: ignore[misc]
    for name in of_stage("start"):
        value = getattr(arguments, name)
        if name not in (*_COMPARED, "update") and value != default(name):
            raise SignInError(
                f"`{name}`={value!r} of SignInCallback has no effect: `configure_model` has already called "
                "`sparsify`. Pass it there, and leave it out here."
            )
    _check_sparsity(arguments, weights)
    _check_parametrization(arguments, weights)
    if arguments.rule is not None:
        raise SignInError(
            f"`update`: {type(arguments.rule).__name__} does not move masks that `configure_model` has made. Leave out "
            "`sparsify` there, and `fully_shard` as well: masks can move on one device and under DDP."
        )
    if not any(is_sharded(weight.factors[0]) for weight in weights.values()):
        return
    if arguments.sharpness_every_n_epochs is not None:
        raise SignInError(
            "`sharpness_every_n_epochs` measures on a copy of the module, and FSDP2 modules cannot be copied. "
            "Leave it out; `lightning_signin.metrics.sharpness` measures the plain model with a checkpoint's weights."
        )


def check_not_sharded(module: LightningModule) -> None:
    """Raise `SignInError` if ranks with different masks hold shards of one weight: masks cannot be exchanged then."""
    if has_shards(module):
        raise SignInError(
            "The ranks have chosen different masks in `configure_model`: they started from different weights, or "
            "scored on different data. Call `seed_everything` before the model is built, and score on the same batches."
        )


@contextmanager
def resuming_sharded(module: LightningModule, path: Any) -> Iterator[None]:
    """Entered while Lightning loads a checkpoint into a sharded sparse module; does nothing for other modules.

    Lightning would look for the factors among the plain names and not find them, so strict loading is turned off. What
    it would have checked is checked here: that the plain names are those of the module.

    Raises:
        SignInError: If the checkpoint is a folder of shards, is not from a sparse run, or has other names or shapes,
            with which loading would fail halfway.
    """
    if not sparse_weights(module) or not has_shards(module):
        yield
        return
    if os.path.isdir(path):
        raise SignInError(f"{path} is a folder of shards, which a sparse run cannot resume. {_ONE_FILE}")
    saved = torch.load(Path(path), map_location="cpu", weights_only=True, mmap=True)
    if STATE_KEY not in saved.get("callbacks", {}):
        raise SignInError(NOT_SPARSE)
    check_complete(saved["callbacks"][STATE_KEY])
    check_factor_state(module, saved["callbacks"][STATE_KEY])
    here = module.state_dict()
    if module.strict_loading and (other := set(here).symmetric_difference(saved["state_dict"])):
        name = min(other)
        raise SignInError(
            f"{name} is only in the {'model' if name in here else 'checkpoint'}. Resume with the "
            "model of the run that wrote it, or set `strict_loading = False` on it."
        )
    with loads_any_entries(module):
        yield


def warn_of_shards() -> None:
    """Warn at the end of a fit that the module was not merged; an error would make a successful run look failed."""
    rank_zero_warn(
        f"The module is sharded over ranks: it was not merged and stays sparse. It runs as it is. {EXPORT} With "
        "SignInCallback(export='safetensors') a fit writes it at its end."
    )


def _check_sparsity(arguments: Arguments, weights: dict[str, SparseWeight]) -> None:
    kept, size = (
        sum(w.storage.active for w in weights.values()),
        sum(w.storage.shape.numel() for w in weights.values()),
    )
    if arguments.sparsity is not None and kept != budget(arguments.sparsity, size):
        raise SignInError(
            f"`configure_model` has called `sparsify`, which kept {kept} of {size} weights, but `sparsity`="
            f"{arguments.sparsity} of SignInCallback asks for {budget(arguments.sparsity, size)}. Leave it out here."
        )


def _check_parametrization(arguments: Arguments, weights: dict[str, SparseWeight]) -> None:
    for name, weight in weights.items():
        there, asked = weight.parametrization, arguments.form.build(weight.storage, 1.0)
        if type(there) is not type(asked) or there.elementwise_map != asked.elementwise_map:
            raise SignInError(
                f"`parametrization`={arguments.parametrization!r} of SignInCallback is not that of {name}: "
                "`configure_model` has chosen another. Pass the same one to `sparsify` and to SignInCallback."
            )
