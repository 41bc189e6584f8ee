"""How a fit becomes sparse: the arguments that determine the mask and the first factors."""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import find_shared_parameters, set_shared_parameters
from torch import Tensor

from lightning_signin.callback.earlier_masks import check_known, to_be_loaded
from lightning_signin.callback.scoring.data import LightningData
from lightning_signin.callback.two_packages import in_both
from lightning_signin.core.functional import check_beta
from lightning_signin.core.naming import name_of, shown
from lightning_signin.core.selection import check_patterns, select_weights
from lightning_signin.errors import SignInError
from lightning_signin.masks.build import check_choice
from lightning_signin.masks.distributions import budget
from lightning_signin.masks.groups import Distribution, check_distribution, has_groups_alone
from lightning_signin.masks.scores import Score, parse_score
from lightning_signin.masks.structures import Structure, parse_structure
from lightning_signin.parametrizations import PARAMETRIZATIONS, Parametrization, parse_parametrization
from lightning_signin.updates import UPDATES, UpdateRule, parse_update
from lightning_signin.verbs.model import sparsify
from lightning_signin.weightfiles.saved import masks_from_file
from lightning_signin.weightfiles.transplants import flip_signs_, transplant_

_DEFAULTS = ("random", None, None)  # mask, distribution, structure


@dataclass(frozen=True)
class Start:
    """The arguments of `SignInCallback` that determine masks and first factors; documented there.

    Raises:
        SignInError: For values out of range, unknown names, and arguments that exclude each other.
    """

    sparsity: float | None
    mask: str | Score
    distribution: Distribution | None
    structure: str | int | Structure | dict[str, str | int] | None
    mask_from: str | os.PathLike | None
    signs_from: str | os.PathLike | None
    magnitudes_from: str | os.PathLike | None
    flip_signs: float
    beta: float | dict[str, float]
    parametrization: str | Parametrization
    update: str | UpdateRule | None
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    storage: str
    seed: int | None

    def __post_init__(self) -> None:
        parse_score(self.mask)
        check_distribution(self.sparsity, self.distribution)
        given: Any = self.structure if self.structure is not None else "unstructured"
        by_pattern = isinstance(given, Mapping)
        read = {n: _read_in_base_60(s) for n, s in (given if by_pattern else {"*": given}).items()}
        if self.structure is not None:
            object.__setattr__(self, "structure", read if by_pattern else read["*"])
        for structure in read.values():
            parse_structure(structure)
        if self.mask_from is not None and (self.mask, self.distribution, self.structure) != _DEFAULTS:
            raise SignInError(
                "`mask_from` reads the whole mask from a file: leave out `mask`, `distribution` and `structure`."
            )
        self._check_update()
        if not 0 <= self.flip_signs <= 1:
            raise SignInError(f"`flip_signs` must be in [0, 1], got {self.flip_signs}. Pass the share, e.g. 0.05.")
        check_choice("storage", self.storage, ("auto", "compact", "dense"))
        for beta in self.beta.values() if isinstance(self.beta, Mapping) else [self.beta]:
            check_beta(beta)
        for argument in ("include", "exclude"):
            object.__setattr__(self, argument, check_patterns(argument, getattr(self, argument)))

    @property
    def form(self) -> Parametrization:
        """How θ is computed from trainable tensors."""
        return parse_parametrization(self.parametrization)

    @property
    def rule(self) -> UpdateRule | None:
        """How the mask moves: as given, or by the parametrization's own rule."""
        update = self.update if self.update is not None else self.form.update
        return None if update is None else parse_update(update)

    @property
    def sparsity_at_start(self) -> float | None:
        """The sparsity of the first mask, for methods in which it differs from the final one."""
        start = self.rule.start_sparsity if self.rule is not None else None
        from_all = start is None and self.sparsity is None and not has_groups_alone(self.distribution)
        return 0.0 if from_all and self.form.prunes and self.rule is None else start

    @property
    def seed_in_force(self) -> int:
        """The seed, or that of ``seed_everything``, or 0."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def saved(self) -> dict[str, Any]:
        """The arguments as plain values, with the seed in force, for checkpoints."""
        saved = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "beta"}
        saved |= {n: os.fspath(v) for n, v in saved.items() if isinstance(v, os.PathLike)}
        saved["mask"] = shown(self.mask)
        saved |= {"update": name_of(self.rule, UPDATES), "parametrization": name_of(self.form, PARAMETRIZATIONS)}
        structure, by_pattern = self.structure, isinstance(self.structure, Mapping)
        saved["structure"] = {n: shown(s) for n, s in structure.items()} if by_pattern else shown(structure)  # type: ignore[union-attr]
        return saved | {"seed": self.seed_in_force}

    def sparsify(
        self, trainer: Trainer, module: LightningModule, known: dict[str, Tensor] | None, resumes: bool
    ) -> bool:
        """Make the module sparse.

        Args:
            trainer: The trainer of the fit.
            module: The complete, plain module.
            known: Masks of an earlier fit, to reuse.
            resumes: Whether masks and factors are loaded from a checkpoint next.

        Returns:
            Whether it is checked, as far as that is needed, that the mask does not cut the network.
        """
        options: Any = {"beta": self.beta, "parametrization": self.form, "storage": self.storage_of(trainer)}
        selection: Any = {"include": self.include, "exclude": self.exclude}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `sparsify` gives the same warnings again
            names = list(select_weights(module, **selection))
        shapes = {name: module.get_parameter(name).shape for name in names}
        _to_run(trainer, module)  # before a checkpoint is loaded too: float64 factors would be rounded to float32
        if known:
            check_known(known, shapes)
        if known or resumes:
            sparsify(module, mask=known or to_be_loaded(shapes), **options, **selection)
            return True
        transplant_(module, names=names, signs_from=self.signs_from, magnitudes_from=self.magnitudes_from)
        chosen: Any = {"mask": self.mask, "sparsity": self.sparsity, "seed": self.seed_in_force}
        needed = None if self.rule is None else self.rule.structure
        chosen |= {"distribution": self.distribution, "structure": self.structure or needed or "unstructured"}
        if (start := self.sparsity_at_start) is not None:
            chosen |= {"sparsity": start, "structure": "unstructured"}
            chosen["distribution"] = None if isinstance(self.distribution, Mapping) else self.distribution
        if self.mask_from is not None:
            chosen = {"mask": self._masks_from_file(shapes)}
        with closing(LightningData(trainer, module)) as data:
            sparsify(module, data=data, **chosen, **options, **selection)
            is_checked = data.shows_network
        if self.flip_signs:
            flip_signs_(module, self.flip_signs, seed=self.seed_in_force)
        return is_checked

    def in_words(self, origin: str | None) -> str:
        """Where the mask is from, and how it moves.

        Args:
            origin: What the mask is from, if the arguments do not imply it.
        """
        if origin is None and self.mask_from is not None:
            origin = f"of {os.fspath(self.mask_from)}"
        if origin is not None:
            mask = f"mask {origin}"
        elif self.sparsity_at_start == 0:
            mask = "dense at the start"
        else:
            spread = self.distribution or getattr(parse_score(self.mask), "distribution", "balanced")
            mask = f"{shown(self.mask)} mask, {'by groups' if isinstance(spread, Mapping) else spread}"
        return mask if self.rule is None else f"{mask}, moved by {type(self.rule).__name__}"

    def storage_of(self, trainer: Trainer) -> str:
        """The storage, chosen for the device of the run, wherever the module is now.

        Indexed copies are slow on XLA; DDP's gradient buckets of fixed size need factors that keep their shape.
        """
        if self.storage == "auto" and trainer.strategy.root_device.type == "xla":
            return "dense"
        has_buckets = trainer.world_size > 1 or isinstance(trainer.strategy, in_both(DDPStrategy))  # of one rank, too
        if self.rule is None or self.rule.keeps_counts or not has_buckets:
            return self.storage
        if self.storage == "compact":
            raise SignInError(
                f"{type(self.rule).__name__} changes the number of weights of a layer, and under DDP and on several "
                "ranks the factors must keep their shape. Pass storage='dense' or 'auto'."
            )
        return "dense"

    def _check_update(self) -> None:
        rule = self.rule
        if rule is None:
            return
        name = type(rule).__name__
        if rule.structure is not None and self.structure not in (None, rule.structure):
            raise SignInError(
                f"`update`: {name} needs structure={rule.structure!r}, got {self.structure!r}. Leave `structure` out."
            )
        if rule.start_sparsity == 0 and (self.mask != "random" or self.mask_from is not None):
            raise SignInError(
                f"`update`: {name} starts from all weights, so `mask` and `mask_from` have no effect. Leave them out, "
                "or choose a rule that starts sparse, e.g. 'rigl'."
            )

    def _masks_from_file(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The masks in the file, checked against the requested sparsity, if any."""
        assert self.mask_from is not None
        masks = masks_from_file(self.mask_from, shapes)
        kept, size = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
        if self.sparsity is not None and kept != budget(self.sparsity, size):
            raise SignInError(
                f"The mask in {self.mask_from} keeps {kept} of {size} weights, a sparsity of {1 - kept / size:.4f}, "
                f"but `sparsity`={self.sparsity} asks for {budget(self.sparsity, size)}. Leave out `sparsity` (None) "
                "to take the mask as it is."
            )
        return masks


def _read_in_base_60(structure: Any) -> Any:
    """The n:m that YAML 1.1 reads as a time if it is not quoted: 2:4 becomes 2 · 60 + 4."""
    return "{}:{}".format(*divmod(structure, 60)) if isinstance(structure, int) else structure


def _to_run(trainer: Trainer, module: LightningModule) -> None:
    """Move the module to the precision and device that it trains with, as Lightning does later."""
    if isinstance(trainer.precision_plugin, in_both(HalfPrecision, DoublePrecision)):
        trainer.precision_plugin.convert_module(module)
    if isinstance(trainer.strategy, in_both(SingleDeviceStrategy, DDPStrategy)):
        tied = find_shared_parameters(module)  # a move to XLA makes new parameters, one per name
        module.to(trainer.strategy.root_device)
        set_shared_parameters(module, tied)
