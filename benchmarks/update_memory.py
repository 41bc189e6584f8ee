"""Memory of RigL beside a static mask and dense training: `python -m benchmarks.update_memory`.

ResNet-50 at 95 %, SGD with momentum, Sign-In, two images of 64×64, so that weights outweigh activations. Each row runs
in a process of its own. "Held" is exact: parameters, gradients, optimizer state, buffers and indices after a step.
"Peak" is the largest resident set during steps of that kind, above that of a process which has only imported its
libraries; the step in which the dense gradients are made ready for the next one counts as one between updates.
"""

import os
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from benchmarks.scoring import in_own_process, resident
from lightning_signin import MaskUpdates, plain_view, sparsify
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates import Cosine, RigL

EVERY, STEPS, SPARSITY = 5, 16, 0.95
ROWS = {"dense": "dense training", "static": "static mask", "rigl": "RigL"}


def peak() -> float:
    """MiB: the largest resident set since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def held(net: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """MiB of everything that lives from step to step."""
    tensors = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters() if p.grad is not None)]
    tensors += [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    for weight in sparse_weights(net).values():
        tensors += [value for value in vars(weight.storage).values() if isinstance(value, torch.Tensor)]
        probe = weight.parametrization.probe
        tensors += [t for t in (probe, None if probe is None else probe.grad) if t is not None]
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors) / 2**20


def measure(kind: str) -> dict[str, float]:
    torch.manual_seed(0)
    F.conv2d(torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3))
    before = resident()
    net = torchvision.models.resnet50()
    if kind != "dense":
        sparsify(net, sparsity=SPARSITY)
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    updates = MaskUpdates(net, RigL(Cosine(EVERY)), [optimizer], total_steps=100) if kind == "rigl" else None
    x, y = torch.randn(2, 3, 64, 64), torch.randint(1000, (2,))
    found = {"between": 0.0, "at": 0.0, "held": 0.0}
    for step in range(STEPS):
        peak()
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        updating = updates is not None and updates.before_step(optimizer)
        optimizer.step()
        if step > 1:  # the first steps make the optimizer's state
            found["at" if updating else "between"] = max(found["at" if updating else "between"], peak() - before)
        if not updating and (step + 1) % EVERY:
            found["held"] = held(net, optimizer)
    return found


if __name__ == "__main__":
    # Large blocks go back to the system at once, so that a resident set is what is in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    print("| | held, MiB | peak of a step, MiB | peak of an update, MiB |\n|---|---|---|---|")
    for kind, title in ROWS.items():
        row = in_own_process(measure, kind)
        update = f"{row['at']:.0f}" if row["at"] else ""
        print(f"| {title} | {row['held']:.0f} | {row['between']:.0f} | {update} |", flush=True)
