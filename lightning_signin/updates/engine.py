"""The one mechanism behind every update rule: when it is due, what it gets, and how its masks are applied."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.numbers import number, whole_number
from lightning_signin.core.optimizer_state import check_movable
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.errors import SignInError, warn
from lightning_signin.masks.build import StructureOf, make_choice
from lightning_signin.masks.groups import Distribution, has_groups_alone
from lightning_signin.updates.change import change_mask_
from lightning_signin.updates.finite import check_finite
from lightning_signin.updates.lane import Lane, lane_of, lanes_of
from lightning_signin.updates.probe import dense_gradients, probe_of
from lightning_signin.updates.ranks import check_same_masks, check_shapes_stay, mean_over_ranks, number_of_ranks
from lightning_signin.updates.resolve import parse_update
from lightning_signin.updates.rule import Layer, Moment, UpdateRule
from lightning_signin.updates.schedule import passed

State = dict[str, Any]


class MaskUpdates:
    """Changes the masks of a module during training according to an update rule.

    Call `before_batch` before every batch, and `before_step` between ``backward`` and every ``step``. With rules that
    look at gradients, the weights of each optimizer are updated by its own step count; with others all are updated
    together, by the step count of the optimizer that has taken the most. At the end, call `close`.

    Args:
        module: A module after `sparsify`, with the sparsity that training starts with (`UpdateRule.start_sparsity`);
            wrapped or not.
        update: A name in `UPDATES`, an import path, or a rule, e.g. ``RigL(drop_fraction=0.5)``.
        optimizers: Those that train the sparse weights.
        total_steps: Length of the run in optimizer steps.
        sparsity: The sparsity at the end of the run, for rules that change it. Default: 0.9.
        distribution: How the kept weights are spread over layers, for rules that use it. Default: the rule's own.
        structure: The pattern of the masks; see `build_masks`.
        storage: "compact", "dense" or "auto", which on several ranks keeps the storage of each weight.
        seed: Seed of random growth.
        average: Averages a gradient over ranks, so that all ranks choose the same masks. Default: the mean over all
            ranks of `torch.distributed`, where it is initialized.

    Attributes:
        mask_change: Share of the mask that the last update replaced.

    Raises:
        SignInError: If the rule, the parametrization, the optimizers and the length of the run are not compatible.

    Example:
        >>> from lightning_signin import plain_view, sparsify
        >>> net = sparsify(nn.Linear(20, 10), sparsity=0.8)
        >>> with plain_view(net):
        ...     optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> updates = MaskUpdates(net, "rigl", [optimizer], total_steps=300)
        >>> for _ in range(150):
        ...     updates.before_batch()
        ...     optimizer.zero_grad()
        ...     net(torch.randn(8, 20)).square().mean().backward()
        ...     _ = updates.before_step(optimizer)
        ...     optimizer.step()
        >>> updates.mask_change > 0, int((net.weight != 0).sum()) <= 40
        (True, True)
    """

    def __init__(
        self,
        module: nn.Module,
        update: str | UpdateRule,
        optimizers: Iterable[Optimizer],
        *,
        total_steps: int,
        sparsity: float | None = None,
        distribution: Distribution | None = None,
        structure: StructureOf | None = None,
        storage: str = "auto",
        seed: int = 0,
        average: Callable[[Tensor], Tensor] = mean_over_ranks,
    ) -> None:
        self.rule, self.storage = parse_update(update), storage
        self.total, self.seed = whole_number("total_steps", total_steps), whole_number("seed", seed, least=None)
        self.average = average
        self.weights = sparse_weights(module)
        self.lanes = lanes_of(self.weights, optimizers)
        self.targets = {name: weight.storage.active for name, weight in self.weights.items()}
        shapes = {name: tuple(weight.storage.shape) for name, weight in self.weights.items()}
        layouts = {name: weight.layout for name, weight in self.weights.items()}
        spread = distribution or self.rule.distribution or "balanced"
        pattern = structure or self.rule.structure or "unstructured"
        final = None if has_groups_alone(spread) else sparsity
        self.choice = make_choice(shapes, final, spread, pattern, layouts)
        self._check()
        check_same_masks(module)
        self.steps = self.rule.schedule.steps(self.total)
        self.mask_change, self._said_idle = 0.0, False
        self._keeps_shapes = number_of_ranks() > 1
        self._arm()

    @property
    def progress(self) -> float:
        """Share of the rule's updates that are done, in [0, 1]."""
        done = max(lane.updated for lane in self.lanes)
        return bisect_right(self.steps, done) / len(self.steps)

    def before_batch(self) -> None:
        """Change the masks if it is due, for rules that look at weights alone."""
        if not self.rule.looks_at_gradients:
            step = max(lane.steps for lane in self.lanes)
            if any(self._due(lane, step) for lane in self.lanes):
                self._change(self.weights, {}, step, self.lanes)

    def before_step(self, optimizer: Optimizer, scale: float = 1.0) -> bool:
        """Change the masks if it is due, for rules that look at gradients.

        Args:
            optimizer: The one that is about to step, after its backward: as it was given to this class, or wrapped,
                as Fabric and ``self.optimizers()`` of a LightningModule give it.
            scale: The factor by which a gradient scaler multiplied the loss.

        Returns:
            Whether the step is to be skipped. If so, all gradients of the optimizer are None, so that its ``step``
            changes nothing: zeros would still apply momentum and decay.

        Raises:
            SignInError: If the optimizer trains sparse weights and was not given to this class.
        """
        lane = lane_of(self.lanes, optimizer)
        if lane is None:
            return False
        gradients = self._gradients(lane, scale) if self._due(lane, lane.steps) else {}
        if gradients:
            self._change({name: lane.weights[name] for name in gradients}, gradients, lane.steps, [lane])
            if self.rule.skips_step:
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
        lane.steps += 1
        self._arm()
        return bool(gradients) and self.rule.skips_step

    def close(self) -> None:
        """Remove the probes that collect dense gradients."""
        for weight in self.weights.values():
            weight.parametrization.probe = None

    def state(self) -> State:
        """The state that a resumed run needs, as plain values."""
        return {
            "lanes": [[lane.steps, lane.updated] for lane in self.lanes],
            "targets": self.targets,
            "mask_change": self.mask_change,
        }

    def load_state(self, state: State) -> None:
        """Continue from a saved state; masks and factors must be loaded before."""
        for lane, saved in zip(self.lanes, state["lanes"], strict=True):
            lane.steps, lane.updated = saved
        self.targets, self.mask_change = dict(state["targets"]), float(state["mask_change"])
        self._arm()

    def _check(self) -> None:
        size = sum(weight.storage.shape.numel() for weight in self.weights.values())
        room = sum(self.choice.structures[n].capacity(shape) for n, shape in self.choice.shapes.items())
        kept = sum(self.targets.values()) if self.rule.start_sparsity is None else self.choice.target
        self.rule.check(kept / size, self.total, room / size)
        check_shapes_stay(self.rule, self.weights.values(), self.storage)
        for lane in self.lanes:
            check_movable([lane.optimizer], max(f.ndim for weight in lane.weights.values() for f in weight.factors))
        for name, weight in self.weights.items():
            if self.rule.grows and weight.parametrization.grown is None:
                raise SignInError(
                    f"{type(self.rule).__name__} lets weights come back at θ = 0, where the parametrization of {name} "
                    "has no gradient: they would stay there. Use 'sign-in', 'plain', 'spred' or 'pilot' with it, or a "
                    "rule that only drops weights, e.g. 'gmp'."
                )

    def _due(self, lane: Lane, step: int) -> bool:
        return passed(self.steps, lane.updated, step)

    def _amount(self, step: int) -> float:
        amount = self.rule.schedule.amount(step, self.total)
        if not 0 <= amount <= 1:
            raise SignInError(f"`amount` of {self.rule.schedule} must be in [0, 1], got {amount} at step {step}.")
        return amount

    def _arm(self) -> None:
        """Let the weights whose optimizer updates at its next step collect their dense gradient."""
        for lane in self.lanes if self.rule.looks_at_gradients else ():
            due = self._due(lane, lane.steps)
            for weight in lane.weights.values():
                if not due:
                    weight.parametrization.probe = None
                elif weight.parametrization.probe is None:
                    weight.parametrization.probe = probe_of(weight)

    def _gradients(self, lane: Lane, scale: float) -> dict[str, Tensor]:
        """The dense gradients that the rule can work with; none if the update has to wait."""
        found = dense_gradients(lane.weights, self.average, number("scale", scale, "(0, inf)"))
        if broken := next((name for name, own in found.items() if not own.isfinite().all()), None):
            check_finite(lane.weights, lane.steps)
            if not lane.waits:
                warn(f"The gradient of {broken} is not finite at step {lane.steps}: the mask update waits.")
            lane.waits = True
            return {}
        lane.waits = False
        if self.rule.works_without_gradient:
            return found
        idle = [name for name, gradient in found.items() if not gradient.any()]
        if 0 < len(idle) < len(found) and not self._said_idle:
            self._said_idle = True
            warn(
                f"{type(self.rule).__name__}: {len(idle)} of {len(found)} layers had no gradient at the update of step "
                f"{lane.steps} ({', '.join(idle)}): their masks stay. (Warned once.) Larger batches may reach them."
            )
        return {name: gradient for name, gradient in found.items() if name not in idle}

    @torch.no_grad()
    def _change(
        self, weights: Mapping[str, SparseWeight], gradients: Mapping[str, Tensor], step: int, lanes: list[Lane]
    ) -> None:
        check_finite(weights, step)
        seed = int(np.random.SeedSequence([self.seed % 2**32, step]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        now = self.steps[bisect_right(self.steps, step) - 1]
        moment = Moment(self._amount(now), now == self.steps[-1], self.choice, generator)
        layers = {
            name: Layer(w, w.storage.mask, self.choice.structures[name], self.targets[name], gradients.get(name))
            for name, w in weights.items()
        }
        idle = (w for lane in lanes for name, w in lane.weights.items() if name not in weights)
        replaced, kept = 0.0, sum(weight.storage.active for weight in idle)
        for name, mask in self.rule.masks(layers, moment):
            storage = weights[name].storage.name if self.storage == "auto" and self._keeps_shapes else self.storage
            share = change_mask_(weights[name], mask, [lane.optimizer for lane in lanes], storage)
            larger = max(layers[name].kept, weights[name].storage.active)
            replaced, kept = replaced + share * larger, kept + larger
        self.mask_change = replaced / max(kept, 1)
        for lane in lanes:
            lane.updated = step
