"""A plain Lightning checkpoint of merged weights, without training state."""

import io
from collections.abc import MutableMapping
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from lightning_signin.errors import SignInError
from lightning_signin.weightfiles.files.paths import PathLike, write_whole
from lightning_signin.weightfiles.files.safe import checked
from lightning_signin.weightfiles.saved import SavedWeights


def write_checkpoint(weights: SavedWeights, output: PathLike) -> PathLike:
    """Write a checkpoint for ``load_from_checkpoint``, ``trainer.test(ckpt_path=…)`` and plain ``torch.load``.

    It holds the merged ``state_dict`` and, if the source has them, epoch, step, hyper-parameters and the entries of the
    module's own ``on_save_checkpoint``. It has no optimizer, scheduler, loop or callback states: it cannot be resumed.

    Args:
        weights: The result of `read_weights`; for a live module, with its `rest` from `rest_of`.
        output: Path or fsspec URL of the file; a local folder must exist.

    Returns:
        The path.

    Raises:
        MissingFileError: If the folder does not exist.
        SignInError: If the hyper-parameters hold other than tensors and plain values.
    """
    tensors = {name: checked(name, value).cpu() for name, value in weights.tensors.items()}
    start = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": version("lightning")}
    file = io.BytesIO()
    torch.save({**start, **weights.rest, "state_dict": _alone(tensors)}, file)
    file.seek(0)
    try:
        torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # pickle's, and those of whatever was pickled
        raise SignInError(
            "The checkpoint would not load with weights_only=True: besides weights it may hold only plain values. "
            "Remove modules from the hyper-parameters: save_hyperparameters(ignore=[…])."
        ) from error
    write_whole(output, file.getbuffer())
    return output


def rest_of(module: nn.Module) -> dict[str, Any]:
    """What Lightning writes into a live module's checkpoint besides weights and training state.

    Returns:
        The further entries of the checkpoint; empty for a module that is not a LightningModule.

    Example:
        >>> rest_of(nn.Linear(2, 2))
        {}
    """
    if not hasattr(module, "on_save_checkpoint"):
        return {}
    owner: Any = module
    rest: dict[str, Any] = {"epoch": owner.current_epoch, "global_step": owner.global_step}
    if owner.hparams:
        rest[owner.CHECKPOINT_HYPER_PARAMS_KEY] = dict(owner.hparams)
        if hasattr(owner, "_hparams_name"):
            rest[owner.CHECKPOINT_HYPER_PARAMS_NAME] = owner._hparams_name  # noqa: SLF001 — see callback/lightning_internals.py
    whole: MutableMapping[str, Any] = {**rest, "state_dict": module.state_dict()}
    owner.on_save_checkpoint(whole)  # its own entries, which its `on_load_checkpoint` may need
    return {name: value for name, value in whole.items() if name != "state_dict"}


def _alone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy views of larger memory: for a view, torch.save would write all of that memory."""
    return {n: t.clone() if t.untyped_storage().nbytes() > t.nbytes else t for n, t in tensors.items()}
