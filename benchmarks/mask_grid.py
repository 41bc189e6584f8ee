"""Every score × distribution × structure on real networks, with the count checked: `python -m benchmarks.mask_grid`.

ResNet-18, DeiT-tiny and an LSTM with linear layers, at 90 %. Scores that go in steps go in few of them, and are
computed once for each distribution. A row of the table is a score: how many masks were built, how many of them have
the exact count, and by how many weights the others miss it at most: theirs is the nearest that the structure can make.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import TrainingData
from lightning_signin.core.selection import select_weights
from lightning_signin.masks import FORCE, SCORES, IterativeSNIP, ProsPr, Structure, SynFlow, build_masks
from lightning_signin.masks.choice import Choice
from lightning_signin.masks.scores import Score
from lightning_signin.masks.structures import parse_structure

SPARSITY = 0.9
FEW_STEPS: dict[str, Score] = {
    "iterative-snip": IterativeSNIP(steps=3),
    "force": FORCE(steps=3),
    "synflow": SynFlow(iterations=5),
    "prospr": ProsPr(steps=1),
}
STRUCTURES = ("unstructured", "2:4", "2:4-cap", "2:8-cap", "4x1-block", "4x4-block", "constant-fan-in")


class Tagger(nn.Module):
    """A sequence model: embedding, LSTM, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 128)
        self.lstm = nn.LSTM(128, 256, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(256, 512), nn.Linear(512, 40)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, 40) for tokens (batch, length)."""
        return self.fc2(self.fc1(self.lstm(self.embedding(tokens))[0]).relu()).mean(1)


@dataclass
class Network:
    """A network, what it reads, and what is special about its layers."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    classes: int
    unstructured: str  # a layer whose three inputs no group or block divides
    groups: dict[str, float]


NETWORKS = {
    "ResNet-18": Network(
        lambda: timm.create_model("resnet18", zero_init_last=False),
        lambda: torch.randn(4, 3, 64, 64),
        1000,
        "conv1.weight",
        {"layer1.*": 0.8, "fc.*": 0.85, "*": 0.95},
    ),
    "DeiT-tiny": Network(
        lambda: timm.create_model("deit_tiny_patch16_224"), lambda: torch.randn(2, 3, 224, 224), 1000,
        "patch_embed.proj.weight", {"*attn*": 0.8, "*": 0.9},
    ),
    "LSTM + Linear": Network(
        Tagger, lambda: torch.randint(1000, (8, 20)), 40, "none", {"fc2.*": 0.8, "*": 0.9},
    ),
}  # fmt: skip


def run(network: Network, score: str) -> str:
    torch.manual_seed(0)
    net = network.make()
    batches = [(network.inputs(), torch.randint(network.classes, (len(network.inputs()),))) for _ in range(2)]
    data = TrainingData(lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]), batches, batches[0][0][:1])
    weights = {name: net.get_parameter(name) for name in select_weights(net)}
    built = exact = furthest = 0
    undefined: dict[str, None] = {}
    begin = time.perf_counter()
    for distribution in ("balanced", "erk", "uniform", "global", network.groups):
        options: dict[str, Any] = {"distribution": distribution, "module": net, "data": data}
        if isinstance(distribution, str):
            options["sparsity"] = SPARSITY
        found: dict[str, Tensor] = {}

        def once(task: Any, found: dict[str, Tensor] = found) -> dict[str, Tensor]:
            if not found:
                found.update(FEW_STEPS.get(score, SCORES[score]())(task))
            return found

        for name in STRUCTURES:
            structure = {w: parse_structure("unstructured" if w == network.unstructured else name) for w in weights}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    masks = build_masks(weights, mask=once, structure=structure, **options)
                except ValueError as error:
                    undefined[str(error).split(":")[0].split(". ")[0]] = None
                    continue
            missed = abs(sum(int(mask.sum()) for mask in masks.values()) - _target(weights, distribution, structure))
            built, exact, furthest = built + 1, exact + (missed == 0), max(furthest, missed)
    return f"{built} | {exact} | {furthest} | {time.perf_counter() - begin:.0f} | {'; '.join(undefined)}"


def _target(weights: dict[str, nn.Parameter], distribution: Any, structure: dict[str, Structure]) -> int:
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    return Choice(shapes, SPARSITY, distribution, structure).target


if __name__ == "__main__":
    print(
        "| network | score | masks | exact | furthest, weights | seconds | undefined |\n|---|---|---|---|---|---|---|"
    )
    for title, network in NETWORKS.items():
        for score in SCORES:
            print(f"| {title} | {score} | {run(network, score)} |", flush=True)
