"""Every optimizer of torch that trains a sparse network, with its own state across rescales where there is a rule."""

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import create_optimizer_v2

from tests.compat.rows import Row
from tests.compat.task import Task

KEEP = {"rescale_momentum": "keep"}
# Of torch.optim: the arguments, and what the callback needs to be told.
OF_TORCH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SGD": ({"lr": 0.1, "nesterov": True, "momentum": 0.9}, {}),
    "Adam": ({"amsgrad": True, "weight_decay": 1e-3}, {}),
    "AdamW": ({}, {}),
    "NAdam": ({}, {}),
    "RAdam": ({}, {}),
    "RMSprop": ({"lr": 1e-3}, {}),
    "Adagrad": ({}, {}),
    "Adadelta": ({}, KEEP),
    "Adamax": ({}, KEEP),
    "ASGD": ({}, KEEP),
    "Rprop": ({"lr": 1e-3}, KEEP),
    "LBFGS": ({"lr": 0.1, "max_iter": 3}, KEEP),
    "Adafactor": ({}, {**KEEP, "storage": "dense"}),
}
REFUSED = {"Muon": "mixes the entries of a weight", "SparseAdam": "does not support dense gradients"}


def task(optimizer: Callable[..., Any], **options: Any) -> Callable[[], Task]:
    return lambda: Task(optimizers=lambda module: optimizer(module.parameters(), **options))


def grouped(module: torch.nn.Module) -> torch.optim.Optimizer:
    """Weight decay by ``ndim``, as most training scripts have it, with names."""
    decayed = [(name, parameter) for name, parameter in module.named_parameters() if parameter.ndim > 1]
    rest = [(name, parameter) for name, parameter in module.named_parameters() if parameter.ndim <= 1]
    assert len(decayed) == 3
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}])


def by_layer(module: Any) -> torch.optim.Optimizer:
    groups = [
        {"params": part.parameters(), "lr": 0.1 / (1 + depth)} for depth, part in enumerate(module.net.children())
    ]
    return torch.optim.SGD([group for group in groups if group["lr"]], lr=0.1)


def of_timm(module: Any) -> torch.optim.Optimizer:
    return create_optimizer_v2(module.net, "adamw", lr=1e-3, weight_decay=0.05, filter_bias_and_bn=True)


OPTIMIZERS = [
    *(Row(name, task(getattr(torch.optim, name), **o), sign_in=s) for name, (o, s) in OF_TORCH.items()),
    *(
        Row(f"{name} foreach={foreach}", task(getattr(torch.optim, name), lr=0.01, foreach=foreach))
        for name in ("SGD", "AdamW")
        for foreach in (True, False)
    ),
    Row("SGD fused", task(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)),
    Row("AdamW fused", task(torch.optim.AdamW, fused=True)),
    Row("AdamW with groups by ndim and by name", lambda: Task(optimizers=grouped)),
    Row("SGD with a group for each layer", lambda: Task(optimizers=by_layer)),
    Row("timm's optimizer factory", lambda: Task(optimizers=of_timm)),
]
