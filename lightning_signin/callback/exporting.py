"""Files for inference at the end of a fit: one of the merged model, and one next to each checkpoint that was kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_signin.callback.two_packages import in_both
from lightning_signin.export.formats import FORMATS, output_beside
from lightning_signin.weightfiles.files.paths import is_file, is_url
from lightning_signin.weightfiles.saved import SavedWeights, read_weights


def export_fit(trainer: Trainer, module: LightningModule, formats: Sequence[str], state: dict[str, Any]) -> None:
    """Write ``merged`` into the log folder, and an export of every kept checkpoint next to it.

    Args:
        trainer: The trainer at the end of its fit.
        module: The module, merged; a sharded one as it is.
        formats: See `parse_exports`.
        state: State of the callback, with the masks and the sign flips.
    """
    if not formats:
        return
    folder = str(trainer.log_dir or trainer.default_root_dir)  # a collective call
    weights = read_weights(module)  # collective as well, if the module is sharded
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    if not is_url(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    weights.describe(state)
    _write(weights, f"{folder.rstrip('/')}/merged.ckpt", formats)
    for path in kept_checkpoints(trainer):
        _write(read_weights(path), path, formats)


def kept_checkpoints(trainer: Trainer) -> list[str]:
    """The files that the trainer's checkpoint callbacks have kept, each once, by path or URL."""
    found: list[str] = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, in_both(ModelCheckpoint)):
            found += [*callback.best_k_models, callback.best_model_path, callback.last_model_path]
    return [path for path in dict.fromkeys(found) if path and is_file(path)]


def _write(weights: SavedWeights, checkpoint: str, formats: Sequence[str]) -> None:
    for name in formats:
        FORMATS[name].write(weights, output_beside(checkpoint, name))
