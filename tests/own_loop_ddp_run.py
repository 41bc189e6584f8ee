"""A script of `distributed/test_own_loops.py`: loops of one's own on two gloo ranks, with and without Fabric."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch.nn.parallel import DistributedDataParallel

from lightning_signin import MaskUpdates, SignInError, load_sparse_state, sparse_state
from lightning_signin.weightfiles.factor_state import mask_digest
from tests.updates.loops import RULES, TOTAL, Loop

RESUMED = ("rigl", "mest", "gmp")


def made(rule: str | None, fabric: Fabric | None = None, **options) -> Loop:
    """In dense storage where a rule changes the number of weights in a layer."""
    counts_change = rule is not None and not RULES[rule].keeps_counts
    loop = Loop(rule, **({"storage": "dense"} if counts_change else {}), **options)
    if fabric is None:
        loop.run = DistributedDataParallel(loop.net, gradient_as_bucket_view=True)
    else:
        loop.run, loop.stepped = fabric.setup(loop.net, loop.optimizer)
    return loop.move_masks()


def outcome(loop: Loop) -> dict:
    return {"digest": mask_digest(loop.run), "factors": [p.detach().clone() for p in loop.net.parameters()]}


def interrupted(rule: str, fabric: Fabric, path: Path) -> dict:
    """A loop of Fabric that saves a file, and goes on from it in new objects."""
    first = made(rule, fabric).train(0, 23, fabric.global_rank, fabric.backward)
    state = {"model": first.run, "optimizer": first.stepped, "sparse": sparse_state(first.run, first.updates)}
    fabric.save(path, state)
    again = made(rule, fabric)
    state = {"model": again.run, "optimizer": again.stepped, "sparse": None}
    fabric.load(path, state)
    load_sparse_state(again.run, state["sparse"], again.updates)
    return outcome(again.train(23, TOTAL, fabric.global_rank, fabric.backward))


def refusal(call) -> str:
    try:
        call()
    except SignInError as error:
        return str(error)
    return ""


def refused(rank: int) -> dict[str, str]:
    compact = Loop("gmp", sparsity=0.8)
    apart = Loop("set", seed=rank)
    return {
        "sizes": refusal(compact.move_masks),
        "other masks": refusal(lambda: MaskUpdates(apart.net, "set", [apart.optimizer], total_steps=300)),
    }


def main(fabric: Fabric, folder: Path) -> None:
    rank = fabric.global_rank
    found: dict = {f"bare {rule}": outcome(made(rule).train(0, TOTAL, rank)) for rule in (None, *RULES)}
    for rule in RESUMED:
        found[f"whole {rule}"] = outcome(made(rule, fabric).train(0, TOTAL, rank, fabric.backward))
        found[f"resumed {rule}"] = interrupted(rule, fabric, folder / f"{rule}.ckpt")
    # The mean of two equal gradients is exact.
    alone = Loop("rigl", optimizer="SGD").move_masks(average=lambda tensor: tensor)
    found["alone"] = outcome(alone.train(0, TOTAL))
    found["same data"] = outcome(made("rigl", optimizer="SGD").train(0, TOTAL))
    found["refused"] = refused(rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(main, Path(sys.argv[1]))
