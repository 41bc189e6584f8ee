"""What is paid now and then: a rescale of ResNet-50, `sparsify` of a ViT-Large, the import, and compiling."""

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import timm
import torch
from torch.nn import functional as F

from benchmarks.overhead.networks import OPTIMIZERS, batch_of, network
from benchmarks.overhead.variants import build, masks_of, train_step
from benchmarks.scoring import in_own_process, resident
from benchmarks.update_memory import peak
from lightning_signin import rescale_, sparsify

ROUNDS = 7


def rescale() -> dict[str, float]:
    """Seconds of a rescale of ResNet-50 with momentum carried over, and of a training step of two samples."""
    torch.set_num_threads(1)
    net = network("resnet50")
    net, optimizer = build("sign-in", net, masks_of(net, 0.1), OPTIMIZERS["sgd"])
    batch = batch_of("resnet50", 2)
    steps = [train_step(net, optimizer, *batch)[0] for _ in range(ROUNDS)]
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        rescale_(net, optimizers=[optimizer], momentum="carry")
        times.append(time.perf_counter() - start)
    return {"rescale_s": median(times), "step_s": median(steps)}


def setup() -> dict[str, float]:
    """Seconds of `sparsify` of ViT-Large, and its extra memory in dense bytes."""
    torch.set_num_threads(1)
    net = timm.create_model("vit_large_patch16_224")
    dense = sum(p.numel() * p.itemsize for p in net.parameters()) / 2**20
    before = resident()
    peak()
    start = time.perf_counter()
    sparsify(net, sparsity=0.9)
    return {"seconds": time.perf_counter() - start, "extra": (peak() - before) / dense, "dense_MiB": dense}


def imports() -> dict[str, float]:
    """Seconds that `import lightning_signin` adds to `import lightning`, each in fresh processes, in turn."""

    def once(names: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {names}"], check=True)
        return time.perf_counter() - start

    once("lightning, lightning_signin")
    added = [once("lightning, lightning_signin") - once("lightning") for _ in range(ROUNDS)]
    return {"added_s": median(added)}


def compiled(name: str) -> dict[str, float]:
    """Seconds of a step, eager and with the network compiled, dense and Sign-In; and graphs after a rescale."""
    torch.set_num_threads(1)
    x, y = batch_of(name, 2)
    net = network(name)
    masks, found = masks_of(net, 0.1), {}
    for variant in ("dense", "sign-in"):
        made, optimizer = build(variant, net, masks, OPTIMIZERS["sgd"])
        fast: Any = torch.compile(made)
        start = time.perf_counter()
        train_step(fast, optimizer, x, y)
        found[f"{variant}, first"] = time.perf_counter() - start
        for kind, module in ((f"{variant}, eager", made), (f"{variant}, compiled", fast)):
            found[kind] = median(train_step(module, optimizer, x, y)[0] for _ in range(ROUNDS))
        if variant == "sign-in":
            before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            rescale_(made, optimizers=[optimizer], momentum="carry")
            F.cross_entropy(fast(x), y).backward()
            found["recompiled"] = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    return found


def run() -> dict[str, dict[str, float]]:
    """Each in a process of its own."""
    parts: dict[str, Callable[..., Any]] = {"rescale": rescale, "setup": setup, "imports": imports}
    found = {name: in_own_process(part) for name, part in parts.items()}
    return found | {f"compile {name}": in_own_process(compiled, name) for name in ("mlp", "resnet18")}


def table(found: dict[str, dict[str, float]]) -> str:
    """Numbers by name."""
    lines = ["| what | |", "|---|---|"]
    return "\n".join(lines + [f"| {n}: {k} | {v:.3g} |" for n, part in found.items() for k, v in part.items()])
