"""What happens to the sparse weights during a fit: mask updates, rescales, decay, and logged numbers."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_signin.arguments import Arguments
from lightning_signin.callback.computing import Computing
from lightning_signin.callback.messages import Reached, say_decays, say_never_rescaled, say_untrained
from lightning_signin.callback.resuming import OUR_STATE
from lightning_signin.callback.schedule import total_steps
from lightning_signin.callback.scoring.first_call import FirstCall
from lightning_signin.callback.sharpness import Curvature
from lightning_signin.callback.start import storage_of
from lightning_signin.core.mirror import MirrorSteps, mirror_steps
from lightning_signin.core.optimizer_rescale import StateAtRescale
from lightning_signin.core.optimizers import add_frobenius_decay_, check_optimizers
from lightning_signin.core.replaced_layers import Places
from lightning_signin.core.structure import check_structure, entries, of_type, optional, row, tensor, whole
from lightning_signin.core.weight_decay import ThetaDecay, decay_theta, decays_of
from lightning_signin.core.weights import sign_in_weights, sparse_weights
from lightning_signin.errors import SignInError, warn
from lightning_signin.metrics.numbers import layer_numbers, whole_numbers
from lightning_signin.metrics.sign_flips import SignFlips
from lightning_signin.parametrizations.decay import add_factor_decay_
from lightning_signin.updates import MaskUpdates
from lightning_signin.updates.finite import ADVICE, not_finite
from lightning_signin.updates.sparse_state import expected_of_updates
from lightning_signin.verbs.model import rescale_

State = dict[str, Any]
_LONG = 1_000_000  # steps of the run that a `fast_dev_run` begins, if it is too short for a rule


class Training:
    """The sparse weights of one fit, from when the module is made sparse until it is merged.

    Args:
        trainer: The trainer of the fit.
        module: The sparse module.
        arguments: The arguments of the run.
        is_checked: Whether the mask is known not to cut the network, where that needs a check.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, arguments: Arguments, is_checked: bool) -> None:
        self.trainer, self.module, self.arguments = trainer, module, arguments
        self.rescales = arguments.form.rescales and arguments.schedule.ever
        self.max_epochs = trainer.fit_loop.max_epochs  # before StochasticWeightAveraging adds one without steps
        self.weights = sparse_weights(module)
        self._places = Places(module)
        self.flips = SignFlips(module, moving=arguments.rule is not None)
        self.curvature: Curvature | None = None
        if arguments.sharpness_every_n_epochs is not None:
            self.curvature = Curvature(trainer, module, arguments.sharpness_batches, arguments.seed_in_force)
        self._computing = Computing(trainer, self.weights)
        self.first_call = None if is_checked else FirstCall(trainer, module)
        self.updates: MaskUpdates | None = None
        self.decay = arguments.form.decay()
        self._theta_decay: ThetaDecay | None = None
        self._mirror: MirrorSteps | None = None
        self.weight_decay = ""  # in words, when the optimizers are known
        self._decaying = [factor for weight in sign_in_weights(module).values() for factor in weight.factors]
        self._seen = (-1, -1)
        self._losses = torch.zeros(2, dtype=torch.float64)  # sum and number of this epoch's losses
        self._reached = Reached(self.weights)
        self._to_load: State | None = None
        self._begun = self._lost = False  # lost: a weight is not finite, and the warning was given

    def check(self) -> None:
        """Raise `SignInError` for an optimizer that cannot train its weights, or one that does not support rescales."""
        check_optimizers(self.weights.values(), self.trainer.optimizers, moving=self.arguments.rule is not None)
        if self.rescales:
            products = sign_in_weights(self.module).values()
            StateAtRescale(self.arguments.rescale_momentum, self.trainer.optimizers, products)
        say_untrained(self.module, self.trainer.optimizers)
        on_factors = self.arguments.weight_decay == "factors" and bool(self._decaying)
        self._mirror = mirror_steps(self.module, self.trainer.optimizers)
        if self.arguments.weight_decay == "theta":
            self._theta_decay = decay_theta(self.module, self.trainer.optimizers)
            on_factors = bool(self._theta_decay.left)
        self.weight_decay = say_decays(
            decays_of(self.weights.values(), self.trainer.optimizers),
            "m and w" if on_factors else "θ",
            frobenius=self.arguments.frobenius_decay,
            of_method=0.0 if self.decay is None else self.decay.strength,
        )

    def begin(self) -> None:
        """Record the signs that flips are counted from, and set up the mask updates."""
        self.flips.rename(self._places.moved())
        if not self._begun:
            self.flips.mark("start", self.module)
            self._begun = True
            if self.rescales:
                say_never_rescaled(self.trainer, self.arguments.schedule, self.max_epochs)
        if self.arguments.rule is not None:
            try:
                self.updates = self._mask_updates(total_steps(self.trainer, self.max_epochs))
            except SignInError:
                if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                    raise
                self.updates = self._mask_updates(_LONG)  # any other error is raised again
            if self._to_load is not None:
                self._load_updates(self.updates, self._to_load)
        if self.first_call is not None:
            self.first_call.begin()

    def before_batch(self) -> None:
        """Move masks and rescale, if due."""
        trainer: Any = self.trainer
        self.flips.rename(self._places.moved())
        if self.updates is not None:
            self.updates.before_batch()
        now, limits = (trainer.current_epoch, trainer.global_step), (self.max_epochs, trainer.max_steps)
        if self.rescales and self.arguments.schedule.due(now, self._seen, *limits):
            rescale_(self.module, optimizers=trainer.optimizers, momentum=self.arguments.rescale_momentum)
        self._seen = now

    def before_step(self, optimizer: Optimizer) -> None:
        """Move masks, if due, and apply the decay: gradients are accumulated and unscaled by now, but not clipped."""
        self._reached.note(optimizer)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        if self.updates is not None and self.updates.before_step(optimizer, scale):
            return
        if not self.arguments.frobenius_decay and self.decay is None:
            return
        stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.arguments.frobenius_decay:
            add_frobenius_decay_(self.weights.values(), self.arguments.frobenius_decay, stepped)
        if self.decay is not None:
            add_factor_decay_(self._decaying, self.decay.strength, stepped)

    def after_batch(self, outputs: Any) -> None:
        """Record the loss, for a decay that depends on it."""
        self._computing.after_batch()
        if self.first_call is not None:
            self.first_call.end()
            self.first_call = None
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self.decay is not None and isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses += torch.tensor([loss.item(), 1.0], dtype=torch.float64)

    def after_epoch(self) -> tuple[dict[str, float], dict[str, float]]:
        """Adapt the decay, and return the epoch's numbers to log: of the whole model, and of its layers."""
        self.flips.rename(self._places.moved())
        epochs = self.trainer.current_epoch + 1
        if epochs == self.arguments.warmup_epochs:
            self.flips.mark("warmup", self.module)
        self._say_lost()
        self._reached.say()
        self.flips.update(self.module)
        numbers = whole_numbers(self.module, self.flips)
        if self.updates is not None:
            numbers |= {"mask_change": self.updates.mask_change, "update_progress": self.updates.progress}
        if self.decay is not None:
            numbers["decay"] = self.decay.strength
            losses: Any = self.trainer.strategy.reduce(self._losses.to(self.module.device), reduce_op="sum")
            norm = sum(weight.values().abs().sum(dtype=torch.float64).item() for weight in self.weights.values())
            loss = (losses[0] / losses[1]).item() if losses[1] else None
            self.decay.epoch_ended(loss, norm, self.trainer.global_step / total_steps(self.trainer, self.max_epochs))
            self._losses.zero_()
        every = self.arguments.sharpness_every_n_epochs
        if self.curvature is not None and every is not None and epochs % every == 0:
            found = self.curvature.measure(train=self.arguments.sharpness_mode == "train")
            numbers |= {"sharpness": float(found), "sharpness_products": float(found.products)}
        return numbers, layer_numbers(self.module, self.flips) if self.arguments.log_layers else {}

    def close(self) -> None:
        """Detach from the weights and the optimizers."""
        if self.first_call is not None:
            self.first_call.close()
        for steps in (self._theta_decay, self._mirror):
            if steps is not None:
                steps.remove()
        if self.updates is not None:
            self.updates.close()

    def state(self) -> State:
        """What resuming needs, as tensors and plain values."""
        return {
            "sign_flips": self.flips.saved(),
            "seen": self._seen,
            "updates": self._to_load if self.updates is None else self.updates.state(),
            "decay": None if self.decay is None else self.decay.state(),
            "losses": self._losses.clone(),
            "weight_decay": self.weight_decay,
        }

    def load(self, state: State) -> None:
        """Continue from a saved state; masks and factors must be loaded before.

        Raises:
            SignInError: If it is altered.
        """
        expected = {
            "sign_flips": self.flips.expected(self.module),
            "seen": row(whole(-1), whole(-1)),
            "updates": optional(of_type(dict)),
            "losses": tensor(torch.float64, (2,)),
        }
        if self.decay is not None:
            expected["decay"] = self.decay.expected
        check_structure(OUR_STATE, state, entries(expected))
        self.flips.load(state["sign_flips"])
        epoch, step = state["seen"]
        self._seen, self._begun = (epoch, step), True
        self._to_load, self._losses = state["updates"], state["losses"].clone()
        if self.decay is not None:
            self.decay.load(state["decay"])
        if self.updates is not None and self._to_load is not None:  # strategies that restore late
            self._load_updates(self.updates, self._to_load)

    @staticmethod
    def _load_updates(updates: MaskUpdates, state: State) -> None:
        check_structure("The checkpoint's state of the mask updates", state, expected_of_updates(updates))
        updates.load_state(state)

    def _say_lost(self) -> None:
        if not self._lost and (name := not_finite(self.weights)):
            self._lost = True
            warn(
                f"{name} is not finite at the end of epoch {self.trainer.current_epoch}: the training loss or a "
                f"gradient was not finite. {ADVICE}"
            )

    def _mask_updates(self, total: int) -> MaskUpdates:
        assert self.arguments.rule is not None
        return MaskUpdates(
            self.module,
            self.arguments.rule,
            self.trainer.optimizers,
            total_steps=total,
            sparsity=self.arguments.sparsity,
            distribution=self.arguments.distribution,
            structure=self.arguments.structure,  # type: ignore[arg-type]
            storage=storage_of(self.arguments, self.trainer),
            seed=self.arguments.seed_in_force,
            average=lambda tensor: self.trainer.strategy.reduce(tensor, reduce_op="mean"),
        )
