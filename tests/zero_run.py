"""A script of `distributed/test_zero.py`: fits on four gloo ranks, with an optimizer that shards its state."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch.distributed.optim import ZeroRedundancyOptimizer

from tests.ddp_run import Digest, Save
from tests.small import Small, callback, copies, loader, trainer

RANKS = 4


class Groups(Small):
    """With AdamW in two groups, whole on every rank or with a part of its state on each."""

    def __init__(self, sharded: bool) -> None:
        super().__init__()
        self.sharded = sharded
        self.states = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.parameters() if parameter.ndim == 1]
        if not self.sharded:
            return torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=0.02)
        optimizer = ZeroRedundancyOptimizer(decayed, torch.optim.AdamW, lr=0.02)
        optimizer.add_param_group({"params": others, "weight_decay": 0.0})
        return optimizer

    def on_train_end(self) -> None:
        optimizer: Any = self.trainer.optimizers[0]
        self.states = len((optimizer.optim if self.sharded else optimizer).state)


def fit(
    sharded: bool,
    *extra: object,
    ckpt_path: Path | None = None,
    strategy: str = "ddp_find_unused_parameters_true",
    **options: object,
) -> dict[str, Any]:
    seed_everything(1, verbose=False)
    module, digest = Groups(sharded), Digest()
    options = {"rescale_momentum": "keep", "frobenius_decay": 0.01, **options}
    runner = trainer(callback(**options), digest, *extra, epochs=3, devices=RANKS, strategy=strategy)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        runner.fit(module, loader(), ckpt_path=ckpt_path)
    # Running statistics belong to each rank until the next forward sends rank 0's.
    weights = {name: weight for name, weight in copies(module).items() if "running" not in name}
    logged = {name: value.item() for name, value in runner.callback_metrics.items()}
    said = [str(warning.message) for warning in warned]
    return {"digest": digest.digest, "weights": weights, "logged": logged, "states": module.states, "warned": said}


def refused(**options: object) -> str:
    try:
        fit(True, **options)
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    path = folder / "mid.ckpt"
    found: dict[str, Any] = {"plain": fit(False), "sharded": fit(True, Save(path))}
    found["resumed"] = fit(True, ckpt_path=path)
    found["carry"] = refused(rescale_momentum="carry")
    found["resumed in other buckets"] = fit(True, ckpt_path=path, strategy="ddp")
    torch.save(found, folder / f"{os.environ.get('LOCAL_RANK', 0)}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort an orderly exit: what counts is on disk


if __name__ == "__main__":
    main(Path(sys.argv[1]))
