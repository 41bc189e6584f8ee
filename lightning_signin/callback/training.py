"""What happens to the sparse weights during a fit: masks move, factors are rescaled and decay, numbers are logged."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_signin.callback.start import Start
from lightning_signin.metrics.signs import signs, summary
from lightning_signin.model import rescale_
from lightning_signin.optimizers import add_frobenius_decay_, check_optimizers, check_rescale
from lightning_signin.parametrizations.decay import add_factor_decay_
from lightning_signin.schedule import RescaleSchedule
from lightning_signin.updates import MaskUpdates
from lightning_signin.weights import sign_in_weights, sparse_weights

State = dict[str, Any]


class Training:
    """The sparse weights of one fit, from when the module is sparse until it is merged.

    Args:
        trainer: The trainer that fits.
        module: The sparse module.
        start: How it became sparse.
        schedule: When to rescale.
        momentum: What a rescale does to the optimizer's momentum.
        frobenius_decay: λ of (λ/2)·‖m ⊙ w‖².
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        start: Start,
        schedule: RescaleSchedule,
        momentum: str,
        frobenius_decay: float,
    ) -> None:
        self.trainer, self.module, self.start = trainer, module, start
        self.schedule, self.momentum, self.frobenius_decay = schedule, momentum, frobenius_decay
        self.rescales = start.form.rescales and schedule.ever
        self.weights = sparse_weights(module)
        self.start_signs: dict[str, Tensor] | None = None
        self.updates: MaskUpdates | None = None
        self.decay = start.form.decay()
        self._seen = (-1, -1)
        self._losses = torch.zeros(2, dtype=torch.float64)  # their sum and number in this epoch
        self._to_load: State | None = None

    def check(self) -> None:
        """Raise `ValueError` where an optimizer leaves out a weight, or cannot do what a rescale needs."""
        check_optimizers(self.weights.values(), self.trainer.optimizers)
        if self.rescales:
            check_rescale(self.momentum, self.trainer.optimizers)

    def begin(self) -> None:
        """Note the signs that flips are counted from, and get ready to move masks."""
        if self.start_signs is None:
            self.start_signs = signs(self.module)
        if self.start.rule is not None:
            self.updates = MaskUpdates(
                self.module,
                self.start.rule,
                self.trainer.optimizers,
                total_steps=self._total_steps(),
                sparsity=self.start.sparsity,
                distribution=self.start.distribution,
                structure=self.start.structure,  # type: ignore[arg-type]
                storage=self.start.storage_of(self.trainer),
                seed=self.start.seed_in_force,
                average=lambda tensor: self.trainer.strategy.reduce(tensor, reduce_op="mean"),  # type: ignore[arg-type, return-value]
            )
            if self._to_load is not None:
                self.updates.load_state(self._to_load)

    def before_batch(self) -> None:
        """Move masks and rescale, if it is due."""
        trainer: Any = self.trainer
        if self.updates is not None:
            self.updates.before_batch()
        now, limits = (trainer.current_epoch, trainer.global_step), (trainer.fit_loop.max_epochs, trainer.max_steps)
        if self.rescales and self.schedule.due(now, self._seen, *limits):
            rescale_(self.module, optimizers=trainer.optimizers, momentum=self.momentum)
        self._seen = now

    def before_step(self, optimizer: Optimizer) -> None:
        """Move masks, if it is due, and decay: gradients are accumulated and unscaled by now, and not yet clipped."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        if self.updates is not None and self.updates.before_step(optimizer, scale):
            return
        stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.frobenius_decay:
            add_frobenius_decay_(self.weights.values(), self.frobenius_decay, stepped)
        if self.decay is not None:
            factors = (factor for weight in sign_in_weights(self.module).values() for factor in weight.factors)
            add_factor_decay_(factors, self.decay.strength, stepped)

    def after_batch(self, outputs: Any) -> None:
        """Note the loss, for a decay that follows it."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self.decay is not None and isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses += torch.tensor([loss.item(), 1.0], dtype=torch.float64)

    def after_epoch(self) -> dict[str, float]:
        """Adapt the decay; what to log of the epoch."""
        assert self.start_signs is not None
        numbers = summary(self.start_signs, self.module)
        if self.updates is not None:
            numbers |= {"mask_change": self.updates.mask_change, "update_progress": self.updates.progress}
        if self.decay is not None:
            numbers["decay"] = self.decay.strength
            losses: Any = self.trainer.strategy.reduce(self._losses.to(self.module.device), reduce_op="sum")
            norm = sum(weight.values().abs().sum(dtype=torch.float64).item() for weight in self.weights.values())
            loss = (losses[0] / losses[1]).item() if losses[1] else None
            self.decay.epoch_ended(loss, norm, self.trainer.global_step / self._total_steps())
            self._losses.zero_()
        return numbers

    def close(self) -> None:
        """Let go of the weights."""
        if self.updates is not None:
            self.updates.close()

    def state(self) -> State:
        """What resuming needs, as tensors and plain values."""
        return {
            "start_signs": signs(self.module) if self.start_signs is None else self.start_signs,
            "seen": self._seen,
            "updates": self._to_load if self.updates is None else self.updates.state(),
            "decay": None if self.decay is None else self.decay.state(),
            "losses": self._losses.clone(),
        }

    def load(self, state: State) -> None:
        """Go on from a saved state."""
        self.start_signs, self._seen = state["start_signs"], tuple(state["seen"])
        self._to_load, self._losses = state["updates"], state["losses"].clone()
        if self.decay is not None:
            self.decay.load(state["decay"])
        if self.updates is not None and self._to_load is not None:  # strategies that restore late
            self.updates.load_state(self._to_load)

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                "The length of the run is not known, and the mask or the decay follows it. Give the Trainer "
                "`max_epochs` and data that has a length, or `max_steps`."
            )
        return int(total)
