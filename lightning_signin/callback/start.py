"""How a fit becomes sparse: the arguments that determine the mask and the first factors."""

import os
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import find_shared_parameters, set_shared_parameters
from torch import Tensor

from lightning_signin.arguments import Arguments
from lightning_signin.callback.earlier_masks import check_known, to_be_loaded
from lightning_signin.callback.scoring.data import LightningData
from lightning_signin.callback.two_packages import in_both
from lightning_signin.core.naming import shown
from lightning_signin.core.selection import select_weights
from lightning_signin.errors import SignInError
from lightning_signin.masks.distributions import budget
from lightning_signin.masks.scores import parse_score
from lightning_signin.verbs.model import sparsify
from lightning_signin.weightfiles.saved import masks_from_file
from lightning_signin.weightfiles.transplants import flip_signs_, transplant_


class Sparsified(NamedTuple):
    """How a fit became sparse.

    Attributes:
        is_checked: Whether the mask is known not to cut the network, where that needs a check.
        arguments: Those that the mask was made with, for the log.
    """

    is_checked: bool
    arguments: Arguments


@dataclass(frozen=True)
class Start:
    """How a fit becomes sparse.

    Args:
        arguments: The arguments of the run.
    """

    arguments: Arguments

    def sparsify(
        self, trainer: Trainer, module: LightningModule, known: dict[str, Tensor] | None, resumes: bool
    ) -> Sparsified:
        """Make the module sparse.

        Args:
            trainer: The trainer of the fit.
            module: The complete, plain module.
            known: Masks of an earlier fit, to reuse.
            resumes: Whether masks and factors are loaded from a checkpoint next.

        Returns:
            How it was done.
        """
        arguments = self.arguments
        options: Any = {
            "beta": arguments.beta,
            "parametrization": arguments.form,
            "storage": storage_of(arguments, trainer),
            "compute": arguments.compute,
        }
        selection: Any = {"include": arguments.include, "exclude": arguments.exclude}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `sparsify` gives the same warnings again
            names = list(select_weights(module, **selection))
        shapes = {name: module.get_parameter(name).shape for name in names}
        _to_run(trainer, module)  # before a checkpoint is loaded too: float64 factors would be rounded to float32
        if known:
            check_known(known, shapes)
        if known or resumes:
            sparsify(module, mask=known or to_be_loaded(shapes), **options, **selection)
            return Sparsified(True, arguments)
        transplant_(module, names=names, signs_from=arguments.signs_from, magnitudes_from=arguments.magnitudes_from)
        chosen: Any = {"mask": arguments.mask, "sparsity": arguments.sparsity, "seed": arguments.seed_in_force}
        needed = None if arguments.rule is None else arguments.rule.structure
        chosen |= {"distribution": arguments.distribution, "structure": arguments.structure or needed or "unstructured"}
        if (start := arguments.sparsity_at_start) is not None:
            chosen |= {"sparsity": start, "structure": "unstructured"}
            chosen["distribution"] = None if isinstance(arguments.distribution, Mapping) else arguments.distribution
        if arguments.mask_from is not None:
            chosen = {"mask": self._masks_from_file(shapes)}
        with closing(LightningData(trainer, module)) as data:
            sparsify(module, data=data, **chosen, **options, **selection)
            is_checked = data.shows_network
        if arguments.flip_signs:
            flip_signs_(module, arguments.flip_signs, seed=arguments.seed_in_force)
        return Sparsified(is_checked, arguments)

    def _masks_from_file(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The masks in the file, checked against the requested sparsity, if any."""
        source, sparsity = self.arguments.mask_from, self.arguments.sparsity
        assert source is not None
        masks = masks_from_file(source, shapes)
        kept, size = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
        if sparsity is not None and kept != budget(sparsity, size):
            raise SignInError(
                f"The mask in {source} keeps {kept} of {size} weights, a sparsity of {1 - kept / size:.4f}, "
                f"but `sparsity`={sparsity} asks for {budget(sparsity, size)}. Leave out `sparsity` (None) "
                "to take the mask as it is."
            )
        return masks


def in_words(arguments: Arguments, origin: str | None) -> str:
    """Where the mask is from, and how it moves.

    Args:
        arguments: The arguments of the run.
        origin: What the mask is from, if the arguments do not imply it.

    Returns:
        A phrase for the log, without a full stop.
    """
    if origin is None and arguments.mask_from is not None:
        origin = f"of {os.fspath(arguments.mask_from)}"
    if origin is not None:
        mask = f"mask {origin}"
    elif arguments.sparsity_at_start == 0:
        mask = "dense at the start"
    elif arguments.sparsity == 0:
        mask = "nothing masked"
    else:
        spread = arguments.distribution or getattr(parse_score(arguments.mask), "distribution", "balanced")
        mask = f"{shown(arguments.mask)} mask, {'by groups' if isinstance(spread, Mapping) else spread}"
    return mask if arguments.rule is None else f"{mask}, moved by {type(arguments.rule).__name__}"


def storage_of(arguments: Arguments, trainer: Trainer) -> str:
    """The storage, chosen for the device of the run, wherever the module is now.

    Indexed copies are slow on XLA; DDP's gradient buckets of fixed size need factors that keep their shape.

    Returns:
        "compact", "dense" or "auto".

    Raises:
        SignInError: If the user asked for compact storage, and the factors must keep their shape.
    """
    if arguments.storage == "auto" and trainer.strategy.root_device.type == "xla":
        return "dense"
    has_buckets = trainer.world_size > 1 or isinstance(trainer.strategy, in_both(DDPStrategy))  # of one rank, too
    if arguments.rule is None or arguments.rule.keeps_counts or not has_buckets:
        return arguments.storage
    if arguments.storage == "compact":
        raise SignInError(
            f"{type(arguments.rule).__name__} changes the number of weights of a layer, and under DDP and on several "
            "ranks the factors must keep their shape. Pass storage='dense' or 'auto'."
        )
    return "dense"


def _to_run(trainer: Trainer, module: LightningModule) -> None:
    """Move the module to the precision and device that it trains with, as Lightning does later."""
    if isinstance(trainer.precision_plugin, in_both(HalfPrecision, DoublePrecision)):
        trainer.precision_plugin.convert_module(module)
    if isinstance(trainer.strategy, in_both(SingleDeviceStrategy, DDPStrategy)):
        tied = find_shared_parameters(module)  # a move to XLA makes new parameters, one per name
        module.to(trainer.strategy.root_device)
        set_shared_parameters(module, tied)
