"""A short run that notes where it is: what `benchmarks.faults` kills.

A network with BatchNorm and dropout trains on scikit-learn's digits, 90 % sparse, and writes two checkpoints every few
steps, of which the second replaces a file of its name.
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_signin import SignInCallback
from lightning_signin.recipes.data import Digits
from lightning_signin.recipes.models import Classifier
from lightning_signin.updates import Cosine, RigL

EPOCHS, EVERY = 12, 4


class Noting(Trainer):
    """Notes in shared memory whether it is in a write, for the process that kills it."""

    def __init__(self, moment: Any, **options: Any) -> None:
        super().__init__(**options)
        self.moment = moment

    def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """Write, and note it."""
        self.moment[0] = 2
        super().save_checkpoint(*arguments, **options)
        self.moment[0] = 1


class NoteStep(Callback):
    """Notes the step."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Note it."""
        trainer.moment[:] = [1, trainer.global_step]


def train(optimizer: str, update: str, folder: Path, checkpoint: Path | None, moment: Any, scratch: str) -> None:
    """The script of the user: the same at the first start and at each later one, but for the checkpoint."""
    torch.set_num_threads(1)
    tempfile.tempdir = scratch
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    seed_everything(1, verbose=False)
    layers = [nn.Flatten(), nn.Linear(64, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Dropout(0.2), nn.Linear(100, 10)]
    model = Classifier(nn.Sequential(*layers), lr=0.01 if optimizer == "adamw" else 0.2, optimizer=optimizer)  # type: ignore[arg-type]
    rule = RigL(Cosine(every_n_steps=10)) if update == "rigl" else None
    sign_in = SignInCallback(sparsity=0.9, update=rule, rescale_every_n_epochs=1, frobenius_decay=1e-4)
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=EVERY, save_last=True)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    options: Any = {"max_epochs": EPOCHS, "accelerator": "cpu", "limit_val_batches": 0, **quiet}
    trainer = Noting(moment, callbacks=[NoteStep(), saver, sign_in], **options)
    trainer.fit(model, Digits(), ckpt_path=checkpoint, weights_only=True)
    # Not the position in the data, nor the signs at the last epoch's end: where a run is killed after its very last
    # step, Lightning has nothing left to do, and neither reads another batch nor ends the epoch.
    state = sign_in.state_dict()
    end: dict[str, Any] = {"weights": model.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
    end |= {key: state[key] for key in ("masks", "factors", "storage", "updates")}
    end["generators"] = [rank["generators"] for rank in state["position"]["ranks"]]
    torch.save(end, folder / "end.part")
    (folder / "end.part").rename(folder / "end.pt")
