"""What an update rule is: which weights are dropped and grown, and when. `MaskUpdates` does the rest."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import ClassVar

import torch
from torch import Tensor

from lightning_signin.core.layout import Layout
from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError
from lightning_signin.masks.choice import Choice
from lightning_signin.masks.largest import largest
from lightning_signin.masks.structures import Structure
from lightning_signin.updates.schedule import Schedule
from lightning_signin.updates.schedules import Constant

Masks = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class Layer:
    """One sparse weight at an update.

    Attributes:
        weight: The weight itself.
        mask: Bool, of its full shape.
        structure: The pattern of the mask.
        target: The number of weights that the layer kept at the start.
        gradient: The gradient of the training loss with respect to the full θ, masked entries included; only for rules
            that look at gradients. All zeros if the loss does not depend on the layer; the rule gets such a layer only
            if it sets `UpdateRule.works_without_gradient`.
    """

    weight: SparseWeight
    mask: Tensor
    structure: Structure
    target: int
    gradient: Tensor | None = None

    @property
    def theta(self) -> Tensor:
        """The full effective weight, 0 where masked; recomputed on each access, to save memory."""
        return self.weight.effective()

    @property
    def kept(self) -> int:
        """The number of weights on the mask."""
        return int(self.mask.sum())

    @property
    def layout(self) -> Layout:
        """Which axes of the weight are outputs and inputs."""
        return self.weight.layout

    @property
    def unit(self) -> int:
        """The number of weights that are kept or masked together."""
        return self.structure.unit(self.layout.shape(tuple(self.mask.shape)))

    @property
    def capacity(self) -> int:
        """The most weights that the pattern can keep."""
        return self.structure.capacity(self.layout.shape(tuple(self.mask.shape)))

    def growth(self) -> Tensor:
        """Scores ≥ 0 to grow by: |∂L/∂θ|; weights on the mask without a gradient rank below, by |θ|; others get 0.

        So a layer with fewer non-zero gradients than weights to grow keeps weights instead of growing arbitrary ones.

        Returns:
            Scores of the weight's shape.
        """
        assert self.gradient is not None
        score = self.gradient.abs()
        places = (self.mask & (score == 0)).flatten().nonzero().squeeze(1)
        if not places.numel() or not score.any():
            return score
        order = self.theta.flatten()[places].abs().argsort(descending=True, stable=True)
        least, score = score[score > 0].min().double(), score.flatten().double()
        score[places[order]] = least * torch.linspace(0.5, 0.25, len(order), dtype=torch.float64, device=score.device)
        return score.view(self.mask.shape)

    def largest(self, score: Tensor, count: int) -> Tensor:
        """The mask of the ``count`` kept weights with the highest scores, singly; among equal ones the first."""
        return largest(score.where(self.mask, -math.inf), count)

    def survivors(self, score: Tensor, count: int) -> Tensor:
        """The mask of the kept weights with the highest scores, in whole units of the pattern.

        Args:
            score: Scores ≥ 0.
            count: How many; rounded to whole units.

        Returns:
            Bool mask of the weight's shape.
        """
        if (unit := self.unit) == 1:
            return self.largest(score, count)
        whole = min(round(count / unit) * unit, self.kept // unit * unit)
        mask = self.structure.pick(self.layout.read(score.where(self.mask, -math.inf)), whole)
        return self.layout.write(mask)

    def grow(self, survivors: Tensor, score: Tensor, count: int) -> Tensor:
        """The mask of ``count`` weights in the layer's pattern: survivors first, then the highest scores.

        Args:
            survivors: Bool mask; all of it is kept if there is no structure, or if it fits the pattern.
            score: Scores ≥ 0.
            count: A multiple of the structure's unit.

        Returns:
            Bool mask of the weight's shape.
        """
        first = 2 * score.max() + 1
        mask = self.structure.pick(self.layout.read(score.where(~survivors, first)), count)
        return self.layout.write(mask)


@dataclass(frozen=True)
class Moment:
    """When an update takes place.

    Attributes:
        amount: The share of the rule's strength that acts now, in [0, 1], according to its schedule.
        is_last: Whether the run has no further update.
        choice: How scores become masks of the sparsity, distribution and structure of the run.
        generator: CPU generator of this update, the same on every rank and after a resume.
    """

    amount: float
    is_last: bool
    choice: Choice
    generator: torch.Generator

    def random(self, like: Tensor) -> Tensor:
        """Uniform scores in [0, 1), in float64 from the CPU, so that every device draws the same."""
        return torch.rand(like.shape, generator=self.generator, dtype=torch.float64).to(like.device)


class UpdateRule:
    """How masks change. Subclass it for a rule of your own, and give its import path as ``update``.

    (Not itself a dataclass, unlike the rules: command lines accept subclasses of plain classes only.)

    Attributes:
        schedule: When masks change, and how strongly.
        distribution: How the kept weights are spread over layers if the user does not choose; None for the mask's own.
        structure: The pattern that the rule needs; None for any.
        start_sparsity: The sparsity that training starts with; None for the final one.
        looks_at_gradients: Updates take place just before an optimizer step and get the dense gradients of its batch;
            else they take place before a batch and get only weights.
        works_without_gradient: The rule also gets layers whose gradient is zero everywhere, e.g. a head that the batch
            did not use; else their masks stay at this update.
        skips_step: The optimizer step after an update is skipped.
        grows: Masked weights may come back.
        keeps_counts: Every layer keeps its number of weights.
    """

    schedule: Schedule = Constant()

    distribution: ClassVar[str | None] = None
    structure: ClassVar[str | None] = None
    start_sparsity: ClassVar[float | None] = None
    looks_at_gradients: ClassVar[bool] = False
    works_without_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    grows: ClassVar[bool] = True
    keeps_counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise SignInError(
                f"`schedule` of {type(self).__name__} must be a schedule, e.g. {type(self).schedule}, got "
                f"{self.schedule!r}."
            )

    def check(self, density: float, total: int, capacity: float) -> None:
        """Check that the rule can work in a run.

        Args:
            density: Share of the weights that the run keeps in the end.
            total: Length of the run in optimizer steps.
            capacity: The largest share of the weights that the structure can keep.

        Raises:
            SignInError: If no update falls into the run, one comes too late, or the schedule is not ascending.
        """
        steps = self.schedule.steps(total)
        if not steps:
            raise SignInError(
                f"{self} never changes the mask in a run of {total} optimizer steps. Lower `every_n_steps` of its "
                "schedule, or train longer."
            )
        for before, step in pairwise(chain([-1], steps)):
            if step <= before:
                raise SignInError(f"`steps` of {self.schedule} must rise from 0 or later, got {step} after {before}.")
        if steps[-1] >= total:
            raise SignInError(
                f"The last update of {self} would come at step {steps[-1]}, after a run of {total} optimizer steps. "
                "Train longer."
            )

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """Yield the name and new mask of each layer that changes, one after the other."""
        raise TypeError(f"{type(self).__name__} must define `masks`.")
