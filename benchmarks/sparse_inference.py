"""Inference on the non-zeros against eager dense torch, with dense onnxruntime beside it.

    python -m benchmarks.sparse_inference bars      # layers and models that the documentation speaks of
    python -m benchmarks.sparse_inference any       # many models and sparsities: is any slower than dense?

One thread, one process. Dense, sparse and onnxruntime take turns; a figure is the median over turns of the ratio of
dense torch's time to the other's. Every layer has the same share of zeros, at random places ("uniform"), except where
"balanced" is said. Run it on a machine that does nothing else.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from statistics import median

import timm
import torch
import torchvision
from torch import Tensor, nn

from lightning_signin import sparsify
from lightning_signin.export.plain_copy import plain_copy
from lightning_signin.export.sparse import to_sparse_inference

SECONDS, TURNS = 6.0, (15, 200)  # to spend on a case; at least and at most so many turns


def linear(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(width, width)


def mlp(*widths: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*[part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())][:-1])


def image(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, 3, size, size)


def vector(width: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, width)


# name: (network, input, {(sparsity, batch): the least gain that is promised})
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], dict[tuple[float, int], float | None]]] = {
    "linear 1024×1024": (
        linear(1024),
        vector(1024),
        {(0.9, 1): 1.5, (0.9, 16): 1.5, (0.9, 128): 1.5, (0.95, 1): None, (0.95, 16): None, (0.95, 128): None},
    ),
    "linear 4096×4096": (
        linear(4096),
        vector(4096),
        {(0.9, 1): 2, (0.9, 16): 2, (0.9, 128): 1.5, (0.9, 512): None, (0.95, 1): 4, (0.95, 16): 4, (0.95, 128): 3},
    ),
    "MLP 1024-4096³-1024": (
        mlp(1024, 4096, 4096, 4096, 1024),
        vector(1024),
        {(0.9, 1): None, (0.9, 16): None, (0.9, 128): None, (0.95, 1): 4, (0.95, 16): 5, (0.95, 128): None},
    ),
    "DeiT-small": (
        lambda: timm.create_model("deit_small_patch16_224"),
        image(224),
        {(0.9, 1): 1.1, (0.9, 8): None, (0.95, 1): None},
    ),
    "ResNet-50": (lambda: timm.create_model("resnet50"), image(224), {(0.9, 1): None, (0.95, 1): None}),
}

ANY_MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "MLP 64-128-10": (mlp(64, 128, 10), vector(64)),
    "MLP 784-300-100-10": (mlp(784, 300, 100, 10), vector(784)),
    "MLP 512⁴": (mlp(512, 512, 512, 512), vector(512)),
    "ResNet-18": (torchvision.models.resnet18, image(64)),
    "MobileNetV3-small": (torchvision.models.mobilenet_v3_small, image(128)),
    "EfficientNet-B0": (torchvision.models.efficientnet_b0, image(96)),
    "DeiT-tiny": (lambda: timm.create_model("deit_tiny_patch16_224"), image(224)),
}
ANY_SPARSITIES, ANY_BATCHES = (0.5, 0.8, 0.9, 0.95), (1, 8)


def sparse_network(make: Callable[[], nn.Module], sparsity: float, distribution: str = "uniform") -> nn.Module:
    torch.manual_seed(0)
    return sparsify(make(), sparsity=sparsity, distribution=distribution)


def in_turns(*calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call, turn by turn."""
    turns: list[list[float]] = []
    for call in calls:
        call()
    end = time.perf_counter() + SECONDS
    while len(turns) < TURNS[0] or (len(turns) < TURNS[1] and time.perf_counter() < end):
        turn = []
        for call in calls:
            start = time.perf_counter()
            call()
            turn.append(time.perf_counter() - start)
        turns.append(turn)
    return turns


def onnx_call(dense: nn.Module, x: Tensor) -> Callable[[], object]:
    """One run of the dense network in onnxruntime, on one thread."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "dense.onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(dense, (x,), path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def gains(module: nn.Module, x: Tensor, with_onnx: bool) -> tuple[float, list[float], float]:
    """Milliseconds dense, the gains of the non-zeros and of onnxruntime, and the factor of bytes of weights."""
    dense, sparse = plain_copy(module), to_sparse_inference(module, x)
    rivals: list[Callable[[], object]] = [lambda: sparse(x)]
    if with_onnx:
        rivals.append(onnx_call(dense, x))
    with torch.inference_mode():
        turns = in_turns(lambda: dense(x), *rivals)
    held = [sum(value.nbytes for value in model.state_dict().values()) for model in (dense, sparse)]
    ratios = [median(turn[0] / turn[place] for turn in turns) for place in range(1, len(turns[0]))]
    return 1e3 * median(turn[0] for turn in turns), ratios, held[0] / held[1]


def bars() -> None:
    print("| | sparsity | batch | dense, ms | non-zeros | bar | dense onnxruntime | memory |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (make, inputs, cases) in CASES.items():
        for (sparsity, batch), bar in cases.items():
            milliseconds, (sparse, onnx), memory = gains(sparse_network(make, sparsity), inputs(batch), with_onnx=True)
            promised = "" if bar is None else f"{bar}×"
            row = f"{sparsity:.0%} | {batch} | {milliseconds:.2f} | {sparse:.2f}× | {promised} | {onnx:.2f}×"
            print(f"| {name} | {row} | {memory:.1f}× |", flush=True)


def any_model() -> None:
    found = {}
    for (name, (make, inputs)), sparsity, batch in product(ANY_MODELS.items(), ANY_SPARSITIES, ANY_BATCHES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            module = sparse_network(make, sparsity, "balanced")
            found[name, sparsity, batch] = gains(module, inputs(batch), with_onnx=False)[1][0]
    print("| balanced masks, batch 1 / 8 | " + " | ".join(f"{sparsity:.0%}" for sparsity in ANY_SPARSITIES) + " |")
    print("|---" * (1 + len(ANY_SPARSITIES)) + "|")
    for name in ANY_MODELS:
        cells = (" / ".join(f"{found[name, s, batch]:.2f}" for batch in ANY_BATCHES) for s in ANY_SPARSITIES)
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\nleast gain: {min(found.values()):.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    stage = sys.argv[1] if len(sys.argv) > 1 else ""
    if stage not in ("bars", "any"):
        sys.exit("usage: python -m benchmarks.sparse_inference bars|any")
    bars() if stage == "bars" else any_model()
