"""Lightning's weight-averaging callbacks, used together with this one: they average θ, not its factors.

mean(m) · mean(w) is not mean(θ), and a rescale changes both factors but not θ. So an averaging callback sees a plain
module: during its hooks the module shows θ, and also while the averaged model is validated (`masks` and
`effective_weights` find nothing then). What the callback writes into the module is converted to factors of that θ.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_signin.callback.lightning_internals import average_of
from lightning_signin.callback.two_packages import in_both
from lightning_signin.callback.wrapped_hooks import replaced_on_instances
from lightning_signin.core.plain_view import show_plain
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.errors import SignInError

Shown = list[tuple[SparseWeight, nn.Parameter]]


class Averaging:
    """Mediates between the averaging callback of a fit, if there is one, and the sparse module.

    A pruned entry becomes zero in the average, too: the averaged model is exactly as sparse as the trained one.

    Args:
        trainer: The trainer of the fit.
        module: The module, still plain.
        moves: Whether the mask moves.
        merge: Merges the module; called when training ends, before the average becomes its weights.

    Raises:
        SignInError: For two averaging callbacks, and for strategies that shard the model.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, moves: bool, merge: Callable[[], object]) -> None:
        self.trainer, self.module, self.moves, self.merge = trainer, module, moves, merge
        everyone: Any = trainer.callbacks  # type: ignore[attr-defined]
        found = [c for c in everyone if isinstance(c, in_both(WeightAveraging, StochasticWeightAveraging))]
        names = [type(callback).__name__ for callback in found]
        if len(found) > 1:
            raise SignInError(
                f"{' and '.join(names)} would exchange each other's weights. Give the Trainer one of them."
            )
        if found and trainer.strategy.restore_checkpoint_after_setup:
            raise SignInError(
                f"{names[0]} copies the whole model, which {type(trainer.strategy).__name__} shards. Use it with one "
                "device or with DDP, or leave it out."
            )
        self.callback = found[0] if found else None
        self._validating = ExitStack()  # keeps the module plain during a validation
        self._plain = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Wrap the hooks of the averaging callback for the duration of a fit."""
        if self.callback is None:
            yield
            return
        around: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            **dict.fromkeys(("on_train_start", "on_train_epoch_start", "on_train_epoch_end"), self._turn),
            "on_train_batch_end": self._batch,
            "on_train_end": self._end,
        }
        if isinstance(self.callback, in_both(WeightAveraging)):  # StochasticWeightAveraging validates the trained model
            around |= {"on_validation_epoch_start": self._open, "on_validation_epoch_end": self._close}
        hooks = [self._saving(), *(self._hook(name, context) for name, context in around.items())]
        with replaced_on_instances(dict.fromkeys(hooks, self.callback)):
            yield

    @torch.no_grad()
    def begin(self) -> None:
        """Put the masked weights into the average, which was copied from the module before it was sparse.

        Raises:
            SignInError: If the copy lacks layers of the module.
        """
        if self.callback is None:
            return
        weights, there = sparse_weights(self.module), dict(self._average().named_parameters())
        if missing := [name for name in weights if name not in there]:
            raise SignInError(
                f"{type(self.callback).__name__} copied the module before it had {', '.join(missing)}, made in its "
                "`setup`. Make the layers in `__init__` or `configure_model`."
            )
        for name, weight in weights.items():
            there[name].copy_(weight.effective())

    def leave(self) -> None:
        """Restore the trained model, if a validation was interrupted."""
        if self._plain and self.callback is not None:
            self.callback.on_validation_epoch_end(self.trainer, self.module)

    @contextmanager
    def put_back(self) -> Iterator[bool]:
        """During a validation, temporarily swap the trained model and the average back into their own places.

        Yields:
            Whether a validation is in progress.
        """
        validating = self._plain
        self.leave()
        try:
            yield validating
        finally:
            if validating and self.callback is not None:
                self.callback.on_validation_epoch_start(self.trainer, self.module)

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise `SignInError` if an averaged run's checkpoint is loaded into a run without averaging."""
        if "current_model_state" in checkpoint and not isinstance(self.callback, in_both(WeightAveraging)):
            raise SignInError(
                "The checkpoint's state_dict holds the averages of a WeightAveraging callback, and the Trainer has "
                "none: it would mix them with the factors of the trained weights. Add the callback to resume."
            )

    def inexact_within_epochs(self) -> list[str]:
        """Why a checkpoint saved now, within an epoch, could not be resumed bit for bit."""
        swa = isinstance(self.callback, in_both(StochasticWeightAveraging))
        if not swa or self.callback.state_dict()["scheduler_state"] is None:  # type: ignore[union-attr]
            return []
        return ["Lightning takes up StochasticWeightAveraging's schedule only at the start of the next epoch"]

    def _hook(self, name: str, around: Callable[[], AbstractContextManager[Any]]) -> Callable[..., None]:
        inner = getattr(self.callback, name)

        def hook(*args: Any, **kwargs: Any) -> None:
            with around():
                inner(*args, **kwargs)

        hook.__name__ = name
        return hook

    def _saving(self) -> Callable[..., None]:
        inner: Any = self.callback.on_save_checkpoint  # type: ignore[union-attr]

        def on_save_checkpoint(trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
            with self.put_back() as validating:
                if validating:
                    checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
                inner(trainer, module, checkpoint)
                if validating:  # the two are about to be swapped again
                    for key in ("state_dict", "current_model_state"):
                        checkpoint[key] = {name: value.clone() for name, value in checkpoint[key].items()}

        return on_save_checkpoint

    @contextmanager
    def _shown(self) -> Iterator[Shown]:
        """The module is plain."""
        with torch.inference_mode(False):  # a validation step may differentiate its parameters
            layers, behind = show_plain(self.module)
        try:
            yield [(weight, getattr(*weight.owners[0])) for weight in behind.values()]
        finally:
            for layer in layers:
                layer.restore()

    @contextmanager
    def _turn(self) -> Iterator[Shown]:
        """The module is plain; what is written into its parameters is converted to factors."""
        with self._shown() as shown:
            yield shown
            for weight, parameter in shown:
                _take_over(weight, parameter.detach())

    @contextmanager
    def _batch(self) -> Iterator[None]:
        """Like `_turn`; then entries that the mask has lost are set to zero in the average."""
        with self._turn() as shown:
            yield
        changing = [weight for weight, _ in shown if self.moves or weight.parametrization.makes_zeros]
        for weight in changing:
            kept = weight.effective() != 0 if weight.parametrization.makes_zeros else weight.storage.mask
            average = self._average().get_parameter(weight.name).detach()
            average.masked_fill_(~kept.to(average.device), 0)

    @contextmanager
    def _end(self) -> Iterator[None]:
        """Training ends: the weights are merged, and replaced by the average, bit for bit."""
        with self._turn() as shown:
            yield
            averages = [(weight, parameter.detach()) for weight, parameter in shown]
        self.merge()
        for weight, averaged in averages:
            theta = weight.storage.unpack(weight.storage.pack(averaged))
            self.module.get_parameter(weight.name).data.copy_(theta)

    @contextmanager
    def _open(self) -> Iterator[None]:
        """A validation starts: the module is plain until `_close`."""
        self._validating.enter_context(self._shown())
        self._plain = True
        yield

    @contextmanager
    def _close(self) -> Iterator[None]:
        yield
        self._validating.close()
        self._plain = False

    def _average(self) -> nn.Module:
        average: Any = average_of(self.callback)
        return average.module if isinstance(average, AveragedModel) else average


@torch.no_grad()
def _take_over(weight: SparseWeight, theta: Tensor) -> None:
    if not torch.equal(weight.storage.pack(theta), weight.values()):
        for tensor, value in zip(weight.tensors, weight.parametrization.right_inverse(theta), strict=True):
            tensor.copy_(value)
