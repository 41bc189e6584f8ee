"""What one level adds to a fit: its weights and mask at the start, and a checkpoint after every epoch."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from lightning_signin.arguments import Arguments
from lightning_signin.callback.start import Sparsified, Start
from lightning_signin.core.selection import layout_of, select_weights
from lightning_signin.errors import SignInError
from lightning_signin.iterative.folder import Folder, State
from lightning_signin.iterative.levels import Levels
from lightning_signin.iterative.seeds import enter_level
from lightning_signin.masks.choice import Choice


class SparsifyLevel:
    """Makes the module of one level sparse: it rewinds the weights and prunes them first.

    Args:
        arguments: Those of the level's `SignInCallback`.
        folder: The files of the run.
        levels: The sparsity of each level.
        level: The number of this level.
        rewind: "imp", "wr" or "lrr".
        first: What ``start.ckpt`` holds besides the weights: the random generators at the start, and the arguments.
    """

    def __init__(
        self, arguments: Arguments, folder: Folder, levels: Levels, level: int, rewind: str, first: State
    ) -> None:
        self.arguments, self.folder, self.levels, self.level = arguments, folder, levels, level
        self.rewind, self.first = rewind, first

    def __call__(
        self, trainer: Trainer, module: LightningModule, known: dict[str, Tensor] | None, resumes: bool
    ) -> Sparsified:
        """Make the complete module sparse; see `Start.sparsify` for the arguments and what is returned."""
        arguments = self.arguments
        if not resumes:
            self._begin(trainer, module)
            source: Any = {"mask_from": self.folder.mask(self.level), "sparsity": None}
            arguments = replace(arguments, **(source if self.level else {"sparsity": 0.0}))
        return Start(arguments).sparsify(trainer, module, known, resumes)

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Load the weights that the level starts from, and write its mask."""
        folder, level = self.folder, self.level
        shapes, choice = self._choice(module)
        if level == 0 and trainer.is_global_zero:
            if not folder.start.exists():
                folder.write({"state_dict": module.state_dict(), **self.first}, folder.start)
            folder.write({n: torch.ones(shape, dtype=torch.bool) for n, shape in shapes.items()}, folder.mask(0))
        elif trainer.is_global_zero:
            trained, kept = folder.read(folder.end(level - 1))["state_dict"], folder.read(folder.mask(level - 1))
            theta = {name: trained[name] for name in kept}
            folder.write(self.levels.masks(level, choice, theta, kept), folder.mask(level))
        trainer.strategy.barrier()
        back = {"imp": folder.start, "wr": folder.rewind, "lrr": folder.end(level - 1)}
        load_weights(module, folder, back[self.rewind] if level else folder.start)
        if level > 0:  # building layers has drawn random numbers, but only in processes that have just built them
            enter_level(level, self.first["generators"])

    def _choice(self, module: LightningModule) -> tuple[dict[str, tuple[int, ...]], Choice]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `sparsify` gives the same warnings again
            selected = select_weights(module, self.arguments.include, self.arguments.exclude)
        shapes = {name: tuple(module.get_parameter(name).shape) for name in selected}
        return shapes, self.levels.choice(shapes, {name: layout_of(owners) for name, owners in selected.items()})


class EpochEnds(Checkpoint):
    """Saves the level in progress after every epoch, and the weights to rewind to after ``rewind_epoch``.

    It is a `Checkpoint`, so that it runs after all other callbacks at an epoch's end.

    Args:
        folder: The files of the run.
        level: The number of the level.
        rewind_epoch: The number of epochs of level 0 after which the weights are saved; None for never.
    """

    def __init__(self, folder: Folder, level: int, rewind_epoch: int | None) -> None:
        self.folder, self.level, self.rewind_epoch = folder, level, rewind_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        if self.level == 0 and trainer.current_epoch + 1 == self.rewind_epoch:
            weights = trainer.strategy.lightning_module_state_dict()  # a collective call
            if trainer.is_global_zero:
                self.folder.write({"state_dict": weights}, self.folder.rewind)
        # Checkpoints do not record that a callback has stopped the run: resumed from here, it would train once more.
        if not trainer.should_stop:
            self.folder.save_checkpoint(trainer, self.folder.progress(self.level))


def load_weights(module: LightningModule, folder: Folder, path: Path) -> None:
    """Load the weights of a file of the folder.

    Raises:
        SignInError: If the file is damaged, or of another model.
    """
    weights = folder.read(path)["state_dict"]
    there, here = _sizes(weights), _sizes(module.state_dict())
    # torch itself ignores the weights of a layer that is None until it is built
    for name in {**there, **here}:
        if there.get(name, "none") != here.get(name, "none"):
            raise SignInError(
                f"The weights in {path} do not match the module: {name} is {there.get(name, 'missing')} there, and "
                f"{here.get(name, 'missing')} in the module. Use the model of that run, with all its layers (call "
                "`configure_model` first if that builds some), or another folder."
            )
    module.load_state_dict(weights)


def _sizes(weights: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"of shape {tuple(value.shape)}" for name, value in weights.items() if isinstance(value, Tensor)}
