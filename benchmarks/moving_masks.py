"""One network at a time with a mask that moves: the loop of `benchmarks.update_table` and `sign_table`.

The protocol is that of `benchmarks.stacked_training`: SGD with momentum 0.9, a triangular learning rate, Frobenius
decay 1e-4 of θ for every method, and with Sign-In a rescale every 5 epochs up to three quarters of the run.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.stacked_training import BATCH, DECAY, MOMENTUM, WARMUP, Problem
from lightning_signin import MaskUpdates, merge_, plain_view, rescale_, sparsify
from lightning_signin.core.optimizers import add_frobenius_decay_
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates import UPDATES, UpdateRule
from lightning_signin.updates.schedules import Periodic

UPDATES_A_RUN = 24  # of periodic rules: every 100 steps of MNIST-1D's 2,400
RESCALE_EVERY, RESCALE_UNTIL = 5, 0.75


def mlp(widths: tuple[int, ...], seed: int) -> nn.Sequential:
    """The network as it starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def steps_of(problem: Problem) -> int:
    """Optimizer steps of a run."""
    return problem.epochs * (len(problem.labels) // BATCH)


def rule_of(name: str, problem: Problem) -> UpdateRule:
    """The rule with its defaults, but for the period."""
    rule = UPDATES[name]()
    if not isinstance(rule.schedule, Periodic):
        return rule
    return replace(rule, schedule=replace(rule.schedule, every_n_steps=steps_of(problem) // UPDATES_A_RUN))  # type: ignore[type-var]


def start(net: nn.Module, sparsity: float, rule: UpdateRule | None, sign_in: bool, seed: int) -> nn.Module:
    """A sparse network with the random mask of a seed, or with all weights for a rule that starts so."""
    dense = rule is not None and rule.start_sparsity == 0
    structure = "unstructured" if dense or rule is None or rule.structure is None else rule.structure
    form = "sign-in" if sign_in else "plain"
    return sparsify(net, sparsity=0.0 if dense else sparsity, structure=structure, parametrization=form, seed=seed)


def fit(
    net: nn.Module,
    problem: Problem,
    lr: float,
    seed: int,
    rule: UpdateRule | None = None,
    sparsity: float = 0.9,
    after_epoch: Callable[[int, nn.Module], None] = lambda epoch, net: None,
) -> nn.Module:
    """Train a sparse network and merge it; the seed decides the order of the batches."""
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=MOMENTUM)
    weights, parameters = sparse_weights(net), list(net.parameters())
    rescales = any(weight.parametrization.factors == ("m", "w") for weight in weights.values())
    last, step = steps_of(problem), 0
    updates = None
    if rule is not None:
        updates = MaskUpdates(net, rule, [optimizer], total_steps=last, sparsity=sparsity, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(problem.epochs):
        if rescales and 0 < epoch < RESCALE_UNTIL * problem.epochs and epoch % RESCALE_EVERY == 0:
            rescale_(net, optimizers=[optimizer], momentum="carry")
        order = torch.randperm(len(problem.labels), generator=generator)
        for batch in order[: last // problem.epochs * BATCH].split(BATCH):
            step += 1
            peak = WARMUP * last
            factor = step / peak if step <= peak else (last - step) / (last - peak)
            optimizer.param_groups[0]["lr"] = lr * factor
            if updates is not None:
                updates.before_batch()
            optimizer.zero_grad()
            F.cross_entropy(net(problem.inputs[batch]), problem.labels[batch]).backward()
            if updates is None or not updates.before_step(optimizer):
                add_frobenius_decay_(weights.values(), DECAY, parameters)
            optimizer.step()
        after_epoch(epoch, net)
    if updates is not None:
        updates.close()
    return merge_(net)


def is_finite(net: nn.Module) -> bool:
    """Whether training has not diverged."""
    return all(bool(parameter.isfinite().all()) for parameter in net.parameters())


@torch.no_grad()
def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """In percent."""
    return (net(inputs).argmax(1) == labels).float().mean().item() * 100
