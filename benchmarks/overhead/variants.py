"""Ways to train one network: dense, masked by other packages, Listing 1 of the paper, and this package."""

import copy
import time
from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from benchmarks.overhead.listing1 import make_listing1
from benchmarks.overhead.networks import Optimizer
from lightning_signin import masks, plain_view, sparsify

Masks = dict[str, Tensor]


def make_pruned(net: nn.Module, found: Masks) -> nn.Module:
    """`torch.nn.utils.prune`: a hook before every forward multiplies weight and mask, both in full shape."""
    for name, mask in found.items():
        prune.custom_from_mask(net.get_submodule(name.removesuffix(".weight")), "weight", mask)
    return net


def make_model_pruned(net: nn.Module, found: Masks) -> nn.Module:
    """Lightning's `ModelPruning` in mid-run, by its own methods: random masks, as many weights over all layers."""
    kept, total = (sum(getattr(mask, count)() for mask in found.values()) for count in ("sum", "numel"))
    layers = [(net.get_submodule(name.removesuffix(".weight")), "weight") for name in found]
    module = LightningModule()
    module.net = net
    callback = ModelPruning("random_unstructured", parameters_to_prune=layers)
    callback.setup(Trainer(logger=False, enable_checkpointing=False), module, "fit")
    callback.apply_pruning(1 - float(kept) / total)
    return net


VARIANTS: dict[str, Callable[[nn.Module, Masks], nn.Module]] = {
    "dense": lambda net, found: net,
    "sign-in": lambda net, found: sparsify(net, mask=found),
    "whole weights": lambda net, found: sparsify(net, mask=found, compute="dense"),
    "plain masked": lambda net, found: sparsify(net, mask=found, parametrization="plain"),
    "listing 1": make_listing1,
    "torch prune": make_pruned,
    "ModelPruning": make_model_pruned,
}


def masks_of(net: nn.Module, density: float) -> Masks:
    """Balanced random masks, the same for all variants."""
    return masks(sparsify(copy.deepcopy(net), sparsity=1 - density))


def build(variant: str, net: nn.Module, found: Masks, optimizer: Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of the network made into the variant, and its optimizer."""
    made = VARIANTS[variant](copy.deepcopy(net), found)
    with plain_view(made):
        return made, optimizer(made.parameters())


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> tuple[float, float]:
    """One step as in every training loop: seconds of all of it, and of the optimizer."""
    start = time.perf_counter()
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    middle = time.perf_counter()
    optimizer.step()
    end = time.perf_counter()
    return end - start, end - middle
