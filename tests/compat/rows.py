"""What a row of the table is, and how it is run: the same fit with and without the callback."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch
import torch
from torch import Tensor, nn

from lightning_signin import SignInCallback, masks
from tests.compat.task import BATCHES, EPOCHS, Task, train_loader, val_loader
from tests.small import copies, differing

SAVE_AT = BATCHES + 2  # a batch in the middle of the second epoch
Options = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One way in which a user's run differs from the plainest one.

    Args:
        name: The id of its tests.
        module: Makes the module.
        trainer: Makes what the Trainer is given; of a folder to write to.
        fit: How the run is started.
        sign_in: What `SignInCallback` needs here, beside the sparsity.
        says: What the one warning of this package says that the run brings.
        lightning: The Lightning that the Trainer is from.
        needs: A package that is not installed with the tests.
    """

    name: str
    module: Callable[[], Any] = Task
    trainer: Callable[[Path], Options] = field(default=lambda folder: {})
    fit: Callable[[Any, Any], None] = field(default=lambda trainer, module: trainer.fit(module, *loaders()))
    sign_in: Options = field(default_factory=dict)
    says: str | None = None
    lightning: ModuleType = lightning.pytorch
    needs: str | None = None

    def plain(self) -> Any:
        """The module as a user makes it to load a checkpoint."""
        module = self.module()
        module.configure_model()
        return module


def loaders() -> tuple[Any, Any]:
    return train_loader(), val_loader()


class Watch(lightning.pytorch.Callback):
    """Notes masks and weights at the start, and saves checkpoints of both kinds in the middle."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.masks, self.start = folder, {}, {}
        self.saved: dict[Path, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: Any, module: nn.Module) -> None:
        self.masks, self.start = masks(module), copies(module)

    def on_train_batch_end(self, trainer: Any, module: nn.Module, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == SAVE_AT:
            for weights_only in (False, True):
                path = self.folder / f"mid{weights_only}.ckpt"
                trainer.save_checkpoint(path, weights_only=weights_only)
                self.saved[path] = copies(module)


@dataclass
class Run:
    """What a run leaves behind."""

    module: Any
    trainer: Any

    def logged(self) -> dict[str, float]:
        """Without what the callback adds, and the times that some loggers measure."""
        return {n: float(v) for n, v in self.trainer.callback_metrics.items() if not n.startswith("signin/")}

    def rates(self) -> list[float]:
        return [float(group["lr"]) for optimizer in self.trainer.optimizers for group in optimizer.param_groups]


def run(row: Row, folder: Path, *callbacks: Any) -> Run:
    lightning.pytorch.seed_everything(1, verbose=False)
    module = row.module()
    lightning.pytorch.seed_everything(2, verbose=False)  # of batches and dropout
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    given = {"max_epochs": EPOCHS, "accelerator": "cpu", "default_root_dir": folder, **quiet, **row.trainer(folder)}
    given["callbacks"] = [*callbacks, *given.pop("callbacks", [])]
    trainer = row.lightning.Trainer(**given)
    row.fit(trainer, module)
    return Run(module, trainer)


def sparse(row: Row) -> SignInCallback:
    chosen = {"sparsity": 0.8, "rescale_every_n_epochs": None, "rescale_every_n_steps": 3, "rescale_until": 1.0}
    return SignInCallback(**{**chosen, **row.sign_in})


def dense(row: Row) -> SignInCallback:
    kept = {name: value for name, value in row.sign_in.items() if name in ("include", "exclude", "storage")}
    return SignInCallback(sparsity=0.0, parametrization="plain", **kept)


def check_equal(one: Run, other: Run) -> None:
    """Bit for bit, in weights, losses, what is logged, and learning rates."""
    assert differing(copies(one.module), copies(other.module)) == []
    assert one.module.losses == other.module.losses
    assert len(one.module.losses) > 1
    assert one.trainer.global_step == other.trainer.global_step
    assert (one.logged(), one.rates()) == (other.logged(), other.rates())


def check_plain(row: Row, done: Run, watch: Watch) -> None:
    """Promise 1: plain names and zeros at the end; what was saved on the way loads strictly into the plain model."""
    plain = row.plain()
    assert [name for name, _ in done.module.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [type(part).__name__ for part in done.module.modules()] == [type(p).__name__ for p in plain.modules()]
    assert [p.stride() for p in done.module.parameters()] == [p.stride() for p in plain.parameters()]
    assert len(watch.saved) == 2
    for path, weights in watch.saved.items():
        checkpoint = torch.load(path, weights_only=True)
        saved = checkpoint["state_dict"]  # averages, beside a callback that averages
        row.plain().load_state_dict(saved, strict=True)
        assert differing(dict(checkpoint.get("current_model_state", saved)), weights) == []
        assert list(saved) == list(plain.state_dict())
    assert watch.masks
    averages = [torch.load(path, weights_only=True)["state_dict"] for path in watch.saved]
    for weights in (watch.start, *watch.saved.values(), *averages, copies(done.module)):
        for name, mask in watch.masks.items():
            assert not weights[name][~mask.to(weights[name].device)].any(), name


def check_trained(done: Run, watch: Watch) -> None:
    assert all(math.isfinite(loss) for loss in done.module.losses)
    end = copies(done.module)
    assert all(torch.isfinite(weight).all() for weight in end.values())
    still = [name for name in watch.masks if torch.equal(watch.start[name].cpu(), end[name].cpu())]
    assert still == []
    kept, size = (sum(int(f(mask)) for mask in watch.masks.values()) for f in (torch.Tensor.sum, torch.Tensor.numel))
    assert kept == round(0.2 * size)
