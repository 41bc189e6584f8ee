"""Time and peak memory of the scores on real networks: `python -m benchmarks.scoring [SCORE …]`.

Every score, and one training step beside them, runs in a process of its own, on one batch of random images. Memory is
the resident set above that of the same process with model and batch in place; P is the size of the parameters.
"""

import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import masks, sparsify
from lightning_signin.masks import SCORES, TrainingData

NETWORKS = {"deit_small_patch16_224": "DeiT-small", "resnet50": "ResNet-50", "resnet18": "ResNet-18"}
BATCH, SPARSITY = 32, 0.9
STEP = "a training step"


def loss_fn(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


def resident() -> float:
    """MiB in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(network: str, score: str) -> dict[str, float]:
    """Seconds and MiB of one score, or of a training step without optimizer."""
    torch.manual_seed(0)
    # A BatchNorm that starts at 0 would leave whole layers without a gradient.
    start: dict[str, Any] = {"zero_init_last": False} if network.startswith("resnet") else {}
    net = timm.create_model(network, num_classes=1000, **start)
    batch = torch.randn(BATCH, 3, 224, 224), torch.randint(1000, (BATCH,))
    size = sum(p.numel() * p.itemsize for p in net.parameters()) / 2**20
    F.conv2d(torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3))  # what the first call loads is not the score's
    before, begin = resident(), time.perf_counter()
    if score == STEP:
        loss_fn(net, batch).backward()
        kept = 0
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = TrainingData(loss_fn, [batch], example_input=batch[0][:1])
            sparsify(net, sparsity=SPARSITY, mask=score, data=data, storage="dense")
        kept = sum(int(mask.sum()) for mask in masks(net).values())
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "MiB": peak - before, "P": size, "kept": kept}


def in_own_process(function: Callable[..., Any], *arguments: str) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(SCORES)
    print(f"{torch.get_num_threads()} threads, batch {BATCH}, sparsity {SPARSITY}\n")
    print("| network | score | seconds | peak memory, MiB | in P | kept |\n|---|---|---|---|---|---|")
    for network, title in NETWORKS.items():
        for score in [STEP, *chosen]:
            try:
                row = in_own_process(measure, network, score)
            except ValueError as error:
                print(f"| {title} | {score} | undefined: {str(error).split(':')[0]} | | | |", flush=True)
                continue
            cells = f"{row['seconds']:.1f} | {row['MiB']:.0f} | {row['MiB'] / row['P']:.1f} | {row['kept']:.0f}"
            print(f"| {title} | {score} | {cells} |", flush=True)
