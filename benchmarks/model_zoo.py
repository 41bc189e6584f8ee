"""Every score on twenty networks of torchvision and timm: `python -m benchmarks.model_zoo [--quick]`.

Masks of 90 % zeros through `sparsify`, with the cross-entropy of two images for those that need data. A line for each
network and score: what became of it, in seconds. "fits" may go on with what was warned of, "refused" with the reason;
"FAILED" is an error that no user should see. ``--quick`` takes few steps where a score goes in steps.
"""

import argparse
import time
import warnings
from collections import Counter
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.mask_grid import FEW_STEPS
from lightning_signin import TrainingData, masks, sparsify
from lightning_signin.masks import SCORES
from lightning_signin.masks.distributions import budget

SPARSITY = 0.9
# The side of the images in pixels, and what makes the network small.
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "torchvision resnet18": (32, {}),
    "torchvision mobilenet_v3_small": (32, {}),
    "torchvision shufflenet_v2_x0_5": (32, {}),
    "torchvision squeezenet1_1": (32, {}),
    "torchvision mnasnet0_5": (32, {}),
    "torchvision regnet_y_400mf": (32, {}),
    "resnet10t": (32, {}),
    "mobilenetv3_small_050": (32, {}),
    "efficientnet_b0": (32, {}),
    "regnetx_002": (32, {}),
    "convnext_atto": (32, {}),
    "ghostnet_050": (32, {}),
    "vit_tiny_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "deit_tiny_distilled_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "swin_tiny_patch4_window7_224": (
        32,
        {"img_size": 32, "window_size": 4, "depths": (1, 1, 1, 1), "embed_dim": 24},
    ),
    "mixer_s32_224": (64, {"img_size": 64}),
    "gmlp_ti16_224": (32, {"img_size": 32}),
    "levit_conv_128s": (64, {"img_size": 64}),
    "tf_efficientnetv2_b0": (32, {}),
    "tiny_vit_5m_224": (64, {"depths": (1, 1, 1, 1)}),
}
# Networks whose residual branches start at zero, where a score by gradients or flow is zero, too.
NOT_FROM_ZERO = {name: {"zero_init_last": False} for name in ("resnet10t", "regnetx_002")}


def made(name: str, **options: Any) -> nn.Module:
    """A network for ten classes, always with the same weights."""
    source, _, model = name.rpartition(" ")
    options = {"num_classes": 10, **NETWORKS[name][1], **options}
    torch.manual_seed(1)
    return torchvision.models.get_model(model, **options) if source else timm.create_model(model, **options)


def images(name: str) -> Tensor:
    """Two images of its size."""
    return torch.randn(2, 3, NETWORKS[name][0], NETWORKS[name][0], generator=torch.Generator().manual_seed(0))


def loss(outputs: Any) -> Tensor:
    """The cross-entropy of all heads."""
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.stack([F.cross_entropy(head, torch.arange(len(head)) % 10) for head in heads]).sum()


def scored(name: str, score: Any) -> nn.Module:
    """The network, sparse."""
    data = TrainingData(lambda module, batch: loss(module(batch)), [images(name)])
    return sparsify(made(name, **NOT_FROM_ZERO.get(name, {})), sparsity=SPARSITY, mask=score, data=data)


def outcome(name: str, score: Any) -> str:
    """What became of it, in one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = masks(scored(name, score))
        except ValueError as error:
            return f"refused: {error}"
        except Exception as error:  # the point of this script
            return f"FAILED: {type(error).__name__}: {error}"
    kept, size = sum(int(mask.sum()) for mask in found.values()), sum(mask.numel() for mask in found.values())
    if kept != budget(SPARSITY, size):
        return f"FAILED: {kept} of {size} weights are kept"
    ours = [str(warning.message) for warning in caught if warning.filename == __file__]
    return " ".join(["fits", *(f"({text})" for text in ours)])


def main(quick: bool) -> None:
    """Print the table and its totals."""
    totals: Counter[str] = Counter()
    for name in NETWORKS:
        for score in SCORES:
            begin = time.perf_counter()
            line = outcome(name, FEW_STEPS.get(score, score) if quick else score)
            totals[line.partition(":")[0].partition(" ")[0]] += 1
            shown = line if len(line) < 300 else line[:300] + " …"
            print(f"{name} | {score} | {time.perf_counter() - begin:.1f} s | {shown}", flush=True)
    print(", ".join(f"{number} {what}" for what, number in totals.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps where a score goes in steps")
    torch.set_num_threads(1)
    main(parser.parse_args().quick)
