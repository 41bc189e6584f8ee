"""A script of `distributed/test_own_ddp.py`: masks that move in a DDP loop of one's own, on two gloo ranks."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_signin import MaskUpdates, plain_view, sparsify
from lightning_signin.updates import GMP, MEST, SET, Constant, Cosine, Cubic, RigL, Stages

# A rule, the sparsity at the start, and the storage of `sparsify`; `MaskUpdates` is at its defaults.
RUNS = {
    "rigl": (RigL(Cosine(3)), 0.8, "auto"),
    "rigl, dense": (RigL(Cosine(3)), 0.8, "dense"),
    "set": (SET(Constant(3)), 0.8, "auto"),
    "gmp": (GMP(Cubic(3)), 0.0, "auto"),
    "mest": (MEST(Stages(3)), 0.8, "auto"),
    "mest, dense": (MEST(Stages(3)), 0.8, "dense"),
}


def trained(rule, sparsity, storage):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 2))
    sparsify(net, sparsity=sparsity, storage=storage)
    with plain_view(net):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    ddp = DistributedDataParallel(net)
    updates = MaskUpdates(net, rule, [optimizer], total_steps=80)
    torch.manual_seed(1 + dist.get_rank())  # each rank has its own batches
    for _ in range(30):
        updates.before_batch()
        optimizer.zero_grad()
        ddp(torch.randn(8, 20)).square().mean().backward()
        updates.before_step(optimizer)
        optimizer.step()
    return {"weights": {name: value.clone() for name, value in net.state_dict().items()}, "moved": updates.mask_change}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, run in RUNS.items():
        try:
            found[name] = trained(*run)
        except ValueError as error:
            found[name] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (Path(sys.argv[1]),), nprocs=2)
