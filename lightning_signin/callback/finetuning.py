"""Lightning's `BaseFinetuning` freezes again at the start of every run: a resume must unfreeze what was unfrozen."""

from collections.abc import Iterable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn

from lightning_signin.callback.two_packages import in_both
from lightning_signin.core.factors_visible import factors_visible
from lightning_signin.core.weights import sparse_weights


def frozen(module: LightningModule) -> list[str]:
    """The plain names of the parameters with ``requires_grad=False``."""
    return sorted({name for name, parameter in _named(module) if not parameter.requires_grad})


def freeze_as_saved_(trainer: Trainer, module: LightningModule, names: Iterable[str]) -> None:
    """Freeze these parameters and no others, if a `BaseFinetuning` has decided which.

    Args:
        trainer: Its callbacks are looked through.
        module: A module before its first step after a resume.
        names: As `frozen` gave them.
    """
    if any(isinstance(callback, in_both(BaseFinetuning)) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        names = set(names)
        for name, parameter in _named(module):
            parameter.requires_grad_(name not in names)


def _named(module: LightningModule) -> list[tuple[str, nn.Parameter]]:
    plain = {id(tensor): weight.name for weight in sparse_weights(module).values() for tensor in weight.tensors}
    with factors_visible():
        return [(plain.get(id(parameter), name), parameter) for name, parameter in module.named_parameters()]
