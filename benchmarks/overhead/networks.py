"""The networks and optimizers whose steps are timed, with random images: what they hold does not change their time."""

from collections.abc import Callable, Iterable
from functools import partial

import timm
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.overhead.decoder import CLASSES, TOKENS, WIDTH, Decoder

MLP_WIDTHS = (12288, 1024, 1024, 1000)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(*MLP_WIDTHS[0:2]),
        nn.ReLU(),
        nn.Linear(*MLP_WIDTHS[1:3]),
        nn.ReLU(),
        nn.Linear(*MLP_WIDTHS[2:4]),
    ),
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "deit-small": partial(timm.create_model, "deit_small_patch16_224"),
    "decoder": Decoder,
}
TITLES = {
    "mlp": "MLP 12288-1024-1024-1000",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "deit-small": "DeiT-small",
    "decoder": "GPT-2-small-shaped decoder",
}
# Small and usual ones; the decoder's samples have 256 tokens.
BATCHES = {"mlp": (2, 128), "resnet18": (2, 32), "resnet50": (2, 32), "deit-small": (2, 16), "decoder": (1, 4)}
SIZES = {"mlp": 64}  # of images, in pixels; 224 for the others
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
}


def network(name: str) -> nn.Module:
    """The network from one seed, in training mode."""
    torch.manual_seed(0)
    return NETWORKS[name]()


def batch_of(name: str, samples: int) -> tuple[Tensor, Tensor]:
    """Images (samples, 3, size, size), or embedded tokens of the decoder, and labels."""
    size = SIZES.get(name, 224)
    generator = torch.Generator().manual_seed(0)
    if name == "decoder":
        tokens = torch.randn(samples, TOKENS, WIDTH, generator=generator)
        return tokens, torch.randint(CLASSES, (samples,), generator=generator)
    images = torch.randn(samples, 3, size, size, generator=generator)
    return images, torch.randint(1000, (samples,), generator=generator)
