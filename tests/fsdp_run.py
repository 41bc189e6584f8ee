"""A script of `distributed/test_fsdp.py`: fits on two gloo ranks, sharded by FSDP2; rank 0 writes what it found."""

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_signin import effective_weights, merge_, plain_view, rescale_, sparsify
from lightning_signin.core.sharded import is_sharded, whole
from lightning_signin.core.weights import sparse_weights
from tests.ddp_run import Save
from tests.small import callback, data, loader, trainer

VARIANTS: dict[str, dict[str, Any]] = {
    "compact": {"optimizer": "SGD"},
    "dense": {"optimizer": "AdamW", "storage": "dense"},
    "plain": {"optimizer": "AdamW", "storage": "dense", "parametrization": "plain"},
}


class Blocks(LightningModule):
    """Three layers whose sizes two ranks cannot halve, made sparse and, where there is a mesh, sharded."""

    def __init__(self, optimizer: str = "SGD", sparse: bool = True, **options: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Unflatten(1, (1, 10)), nn.Conv1d(1, 7, 3), nn.ReLU()),
            nn.Sequential(nn.Flatten(), nn.Linear(56, 23), nn.LayerNorm(23), nn.ReLU()),
            nn.Linear(23, 3),
        )
        self.optimizer, self.sparse, self.options = optimizer, sparse, {"sparsity": 0.7, "seed": 3, **options}
        self.fails_at = -1
        self.seen: list[tuple[str, int]] = []

    def configure_model(self) -> None:
        if sparse_weights(self):
            return
        if self.sparse:
            sparsify(self.net, **self.options)
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for part in (self.net[0], self.net[1][1], self.net):  # a block, a sparse layer, and the rest as the root
                fully_shard(part, mesh=mesh)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.fails_at:
            raise OSError("no power")
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.seen = [(name, p.ndim) for name, p in self.named_parameters()]
        groups = [{"params": [p for p in self.parameters() if p.ndim > 1]}]
        groups.append({"params": [p for p in self.parameters() if p.ndim == 1], "weight_decay": 0.1})
        if self.optimizer == "SGD":
            return torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        return torch.optim.AdamW(groups, lr=0.02, weight_decay=0.01)


class Rescue(Callback):
    """Saves where a fit fails, as `OnExceptionCheckpoint` does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer, *_):
        trainer.save_checkpoint(self.path)


class ListsWeights(Callback):
    """Lists parameters in a plain view."""

    def on_train_epoch_end(self, trainer, module):
        with plain_view(module):
            dict(module.named_parameters())


class Lists(Callback):
    """Lists parameters in hooks, twice in each epoch."""

    def on_train_epoch_start(self, trainer, module):
        list(module.net[1].parameters())

    def on_train_epoch_end(self, trainer, module):
        dict(module.named_parameters())


def fit(
    module: Blocks,
    *callbacks: object,
    strategy: object = None,
    ckpt_path: Path | None = None,
    root: Path | None = None,
    **options: Any,
) -> Trainer:
    strategy = strategy or ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
    sign_in = callback(**{"sparsity": None, "frobenius_decay": 0.01, **options})
    runner = trainer(sign_in, *callbacks, devices=2, strategy=strategy, epochs=3, default_root_dir=root)
    runner.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return runner


def seeded(**options: Any) -> Blocks:
    seed_everything(1, verbose=False)
    return Blocks(**options)


def held_of(factor: Tensor, optimizer: torch.optim.Optimizer) -> list[int]:
    """How many entries of a factor and of each of its states are in this rank's memory."""
    entries = [factor.detach(), *(state for state in optimizer.state[factor].values() if state.ndim)]
    return [(tensor.to_local() if is_sharded(tensor) else tensor).numel() for tensor in entries]


def ended(module: Blocks, runner: Trainer) -> dict[str, Any]:
    """What a fit has ended with, whole."""
    state = {name: whole(tensor).clone() for name, tensor in module.state_dict().items()}
    tensors = [tensor for weight in sparse_weights(module).values() for tensor in weight.tensors]
    factors = [whole(tensor.detach()) for tensor in tensors]
    held = [held_of(tensor, runner.optimizers[0]) for tensor in tensors]
    logged = {name: value.item() for name, value in runner.callback_metrics.items()}
    return {"state": state, "factors": factors, "held": held, "logged": logged, "seen": module.seen}


def variant(options: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """The same fit sharded, sharded and resumed, and under DDP."""
    form = {"parametrization": options.get("parametrization", "sign-in")}
    sharded, mid, end = seeded(**options), folder / f"{name}-mid.ckpt", folder / f"{name}.ckpt"
    listing = [Lists() if name == "compact" else ListsWeights()]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        runner = fit(sharded, Save(mid), *listing, root=folder / name, export="safetensors", **form)
    runner.save_checkpoint(end)
    effective = effective_weights(sharded)
    found = {"sharded": ended(sharded, runner), "effective": effective, "warned": [str(w.message) for w in warned]}
    found["tested"] = runner.test(sharded, loader(), verbose=False)[0]
    again = seeded(**options)
    with torch.no_grad():  # nothing of the start may be left
        for parameter in again.parameters():
            parameter.mul_(2.0)
    found["resumed"] = ended(again, fit(again, ckpt_path=mid, **form))
    ddp = seeded(**options)
    found["ddp"] = ended(ddp, fit(ddp, strategy="ddp", **form))
    return found


def refused(run: Callable[[], object]) -> str:
    """What an error says, of which every rank has one."""
    try:
        run()
    except ValueError as error:
        return str(error)
    return "nothing"


def refusals(folder: Path) -> dict[str, str]:
    rank = int(os.environ.get("LOCAL_RANK", 0))
    folders, file = ModelParallelStrategy(2, 1), folder / "compact-mid.ckpt"
    other = seeded(mask="magnitude", distribution="global")
    with torch.no_grad():
        other.net[2].weight.mul_(1 + rank)
    merged = seeded()
    fit(merged)
    larger = seeded()
    larger.norm = nn.LayerNorm(3)
    plain = seeded(sparse=False)
    weights = {"state_dict": plain.state_dict()}
    (folder / "shards").mkdir(exist_ok=True)
    torch.save(weights, folder / f"dense{rank}.ckpt")
    return {
        "folders": refused(lambda: fit(seeded(), strategy=folders)),
        "merge": refused(lambda: merge_(merged)),
        "sharded before": refused(lambda: fit(plain, sparsity=0.7)),
        "masks that move": refused(lambda: fit(seeded(), update="rigl")),
        "sharpness": refused(lambda: fit(seeded(), sharpness_every_n_epochs=1)),
        "mask": refused(lambda: fit(seeded(), mask="snip")),
        "sparsity": refused(lambda: fit(seeded(), sparsity=0.9)),
        "parametrization": refused(lambda: fit(seeded(), parametrization="plain")),
        "other masks": refused(lambda: fit(other)),
        "a folder to resume": refused(lambda: fit(seeded(), ckpt_path=folder / "shards")),
        "a dense checkpoint": refused(lambda: fit(seeded(), ckpt_path=folder / f"dense{rank}.ckpt")),
        "other names": refused(lambda: fit(larger, ckpt_path=file)),
        "another number": refused(lambda: fit(seeded(sparsity=0.8), ckpt_path=file)),
        "another storage": refused(lambda: fit(seeded(storage="dense"), ckpt_path=file)),
    }


def interrupted(folder: Path) -> dict[str, Any]:
    """A fit that fails on all ranks, and one that resumes what was saved then."""
    first = seeded()
    first.fails_at = 7
    with suppress(OSError):
        fit(first, Rescue(folder / "rescued.ckpt"))
    second = seeded()
    return {
        "sparse": len(sparse_weights(first)),
        "resumed": ended(second, fit(second, ckpt_path=folder / "rescued.ckpt")),
    }


def by_hand(mesh: Any = None) -> dict[str, dict[str, Tensor]]:
    """Weights after a loop without Lightning: of one process with all batches, or of ranks that share them."""
    net = seeded().net
    sparsify(net, sparsity=0.7)
    for part in (net[1][1], net) if mesh is not None else ():
        fully_shard(part, mesh=mesh)
    with plain_view(net):
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.ndim > 1], lr=0.02)
    for step, (x, y) in enumerate(DataLoader(data(), 20)):
        if step == 2:
            rescale_(net, optimizers=[optimizer], momentum="carry")
        if mesh is not None:
            x, y = (tensor.chunk(2)[torch.distributed.get_rank()] for tensor in (x, y))
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    state = {name: whole(tensor).clone() for name, tensor in net.state_dict().items()}
    other = sparsify(seeded().net, sparsity=0.7)
    if mesh is not None:
        fully_shard(other, mesh=mesh)
    other.load_state_dict(net.state_dict())
    return {"trained": state, "loaded": {name: whole(tensor).clone() for name, tensor in other.state_dict().items()}}


def viewed(mesh: Any = None) -> dict[str, Any]:
    """What `plain_view` shows after each step, in which weights are clipped, and at last one is frozen."""
    net = sparsify(seeded().net, sparsity=0.7)
    for part in (net[1][1], net) if mesh is not None else ():
        fully_shard(part, mesh=mesh)
    with plain_view(net):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
    found: dict[str, Any] = {"shown": [], "kept": []}
    for x, y in list(DataLoader(data(), 20))[:2]:
        if mesh is not None:
            x, y = (tensor.chunk(2)[torch.distributed.get_rank()] for tensor in (x, y))
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        tensors = [tensor for weight in sparse_weights(net).values() for tensor in weight.tensors]
        before = [whole(tensor.detach()).clone() for tensor in tensors]
        with plain_view(net), torch.no_grad():
            found["shown"].append({name: whole(p).clone() for name, p in net.named_parameters()})
            for parameter in net.parameters():
                parameter.clamp_(-0.2, 0.2)
        found["kept"] += [int((whole(t.detach()) == old).sum()) for t, old in zip(tensors, before, strict=True)]
    with plain_view(net):
        net[1][1].weight.requires_grad_(False)
    found["trained"] = [weight.tensors[0].requires_grad for weight in sparse_weights(net).values()]
    found["clipped"] = {name: theta.clone() for name, theta in effective_weights(net).items()}
    return found


class Clips(Callback):
    """Max-norm by entries, as the guide writes it for FSDP2."""

    def on_train_batch_end(self, trainer, module, *_):
        with plain_view(module), torch.no_grad():
            for parameter in module.parameters():
                parameter.clamp_(-0.15, 0.15)


def clipped_in_fit(strategy: object) -> dict[str, Tensor]:
    module = seeded()
    fit(module, Clips(), strategy=strategy)
    return {name: whole(tensor).clone() for name, tensor in module.state_dict().items()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {name: variant(options, folder, name) for name, options in VARIANTS.items()}
    found["refused"] = [{}, {}]
    torch.distributed.all_gather_object(found["refused"], refusals(folder))
    found["interrupted"] = interrupted(folder)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicated", "sharded"))
    found["by hand"] = {"one": by_hand(), "two": by_hand(mesh)}
    found["viewed"] = {"one": viewed(), "two": viewed(mesh)}
    found["clipped"] = {"sharded": clipped_in_fit(None), "ddp": clipped_in_fit("ddp")}
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        torch.save(found, folder / "found.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort an orderly exit: what counts is on disk


if __name__ == "__main__":
    main(Path(sys.argv[1]))
