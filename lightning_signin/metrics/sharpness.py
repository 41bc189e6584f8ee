"""Sharpness: the largest eigenvalues of the Hessian of the training loss in θ (Figures 4 and 8), and its trace."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.core.numbers import number, whole_number
from lightning_signin.metrics.hessian import hessian
from lightning_signin.objective.training_data import Objective, TrainingData


@dataclass(frozen=True)
class Sharpness:
    """The result of `sharpness`.

    Attributes:
        eigenvalues: The k largest, in descending order.
        error: The largest relative residual ‖Hv − λv‖ / |λ| among them: a true eigenvalue is within this relative
            distance of each. (The actual error of λ is of the order of its square.)
        products: How many Hessian-vector products it took.
        converged: Whether ``error`` is within the tolerance.
    """

    eigenvalues: tuple[float, ...]
    error: float
    products: int
    converged: bool

    def __float__(self) -> float:
        return self.eigenvalues[0]


def sharpness(
    module: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    k: int = 1,
    tol: float = 1e-3,
    max_products: int = 200,
    train: bool = False,
    seed: int = 0,
) -> Sharpness:
    """The k largest eigenvalues of the Hessian of the training loss in θ, on the masks.

    Lanczos' recurrence with full reorthogonalization, without restarts: its Krylov space gives the best estimates that
    this many products allow. It stops when the relative residuals of the wanted eigenvalues are within the tolerance.

    Args:
        module: Any module, sparse or plain; it stays as it is (see `hessian`).
        loss_fn: ``loss_fn(module, batch)`` returns the scalar training loss.
        batches: Batches, over which the loss is averaged.
        k: How many eigenvalues, at least 1.
        tol: Tolerance of the relative residual, positive.
        max_products: Stop after this many Hessian-vector products, converged or not.
        train: Leave dropout and batch statistics on.
        seed: Seed of the start vector.

    Returns:
        The eigenvalues in descending order, and how they were found.

    Raises:
        SignInError: For values out of range, and where the loss is not finite.

    Example:
        >>> x = torch.randn(50, 3)
        >>> found = sharpness(nn.Linear(3, 1, bias=False), lambda net, x: net(x).square().mean() / 2, [x])
        >>> abs(float(found) / torch.linalg.eigvalsh(x.T @ x / 50)[-1].item() - 1) < 1e-3
        True
    """
    options = {"k": k, "tol": tol, "max_products": max_products, "train": train, "seed": seed}
    return sharpness_of(module, TrainingData(loss_fn), batches, **options)  # type: ignore[arg-type]


def sharpness_of(
    module: nn.Module,
    data: Objective,
    batches: Iterable[Any],
    *,
    k: int = 1,
    tol: float = 1e-3,
    max_products: int = 200,
    train: bool = False,
    seed: int = 0,
) -> Sharpness:
    """`sharpness` for `TrainingData`, e.g. that of a fit on several ranks."""
    k, tol = whole_number("k", k), number("tol", tol, "(0, inf)")
    max_products = whole_number("max_products", max_products, least=k, hint="Each eigenvalue takes at least one.")
    generator = torch.Generator().manual_seed(whole_number("seed", seed, least=None))
    with hessian(module, data, batches, train=train) as operator:
        # Starting from the gradient would save one product late in training, but cost five or six early on.
        start = torch.randn(operator.size, generator=generator).to(operator.gradient)
        return lanczos(operator, operator.size, start, k=k, tol=tol, max_products=max_products)


def lanczos(
    product: Callable[[Tensor], Tensor], size: int, start: Tensor, *, k: int, tol: float, max_products: int
) -> Sharpness:
    """The k largest eigenvalues of a symmetric operator, see `sharpness`.

    Args:
        product: The product with a vector of shape (size,).
        size: The size of the operator.
        start: Start vector.
        k: How many.
        tol: Relative tolerance.
        max_products: The most products.

    Returns:
        The eigenvalues in descending order, and how they were found.
    """
    vectors: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    vector = start / start.norm()
    wanted = min(k, size)
    for count in range(1, min(max_products, size) + 1):
        vectors.append(vector)
        image = product(vector)
        diagonal.append(torch.dot(image, vector).item())
        for _ in range(2):  # once is not enough in float32
            for known in vectors:
                image = image - torch.dot(image, known) * known
        beside.append(image.norm().item())
        values, residuals = _ritz(diagonal, beside)
        error = max(r / max(abs(v), 1e-300) for v, r in zip(values[:wanted], residuals, strict=False))
        exhausted = beside[-1] <= 1e-7 * max(abs(value) for value in values) or count == size
        if count >= wanted and (error <= tol or exhausted):
            return Sharpness(tuple(values[:k]), 0.0 if exhausted else error, count, True)
        vector = image / beside[-1]
    return Sharpness(tuple(values[:k]), error, count, False)


def hessian_trace(
    module: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    samples: int = 32,
    train: bool = False,
    seed: int = 0,
) -> tuple[float, float]:
    """The trace of the Hessian of the training loss in θ, on the masks (Hutchinson's estimator with random signs).

    Args:
        module: See `sharpness`, as the other arguments.
        loss_fn: The training loss.
        batches: Its batches.
        samples: Number of Hessian-vector products, at least 2.
        train: Leave dropout and batch statistics on.
        seed: Seed of the random signs.

    Returns:
        The estimate and its standard error.

    Raises:
        SignInError: If ``samples`` is below 2, or the loss is not finite.
    """
    samples = whole_number("samples", samples, least=2, hint="A standard error needs two.")
    generator = torch.Generator().manual_seed(whole_number("seed", seed, least=None))
    with hessian(module, TrainingData(loss_fn), batches, train=train) as operator:
        found = []
        for _ in range(samples):
            signs = torch.randint(0, 2, (operator.size,), generator=generator).mul_(2).sub_(1).to(operator.gradient)
            found.append(torch.dot(signs, operator(signs)).item())
    mean = sum(found) / samples
    variance = sum((value - mean) ** 2 for value in found) / (samples - 1)
    return mean, math.sqrt(variance / samples)


def _ritz(diagonal: list[float], beside: list[float]) -> tuple[list[float], list[float]]:
    """Ritz values, the largest first, and the norms of their residuals."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if len(diagonal) > 1:
        off = torch.tensor(beside[:-1], dtype=torch.float64)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    residuals = (beside[-1] * vectors[-1]).abs()
    return values.flip(0).tolist(), residuals.flip(0).tolist()
