"""Sign flips and sharpness with and without Sign-In on MNIST-1D (Figures 1 and 4): `python -m benchmarks.landscape`.

The network and the protocol of `benchmarks.update_table`, random mask at 90 %, the learning rates of its "static" rows.
Flips are shares of the kept weights; the warm-up is the first fifth of the run, where the learning rate has its peak.
Sharpness is that of the training loss on 1,000 training samples, and at equal loss: at the first epoch whose training
loss on these samples is below 0.1. Mean ± 95 % interval of 10 seeds, differences paired; nothing is stored.
"""

import multiprocessing
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.mask_table import mean_interval
from benchmarks.moving_masks import fit, mlp, start
from benchmarks.update_table import data_of, learning_rate
from lightning_signin.metrics import SignFlips, sharpness

SEEDS, SPARSITY, SAMPLES, LOSS = range(10), 0.9, 1000, 0.1
ROWS = ("start → end", "start → warm-up", "warm-up → end", "sharpness after 25 %", "… 50 %", "… 100 %", "at equal loss")


def loss_fn(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


def run(sign_in: bool, seed: int) -> list[float]:
    """The numbers of `ROWS` of one run."""
    torch.set_num_threads(1)
    problem, _ = data_of("mnist1d", held_out=False)
    batch = problem.inputs[:SAMPLES], problem.labels[:SAMPLES]
    net = start(mlp(problem.widths, seed), SPARSITY, None, sign_in, seed)
    flips, found = SignFlips(net), []
    equal: list[float] = []

    def measure(epoch: int, net: nn.Module) -> None:
        epochs = epoch + 1
        if epochs == problem.epochs // 5:
            flips.mark("warmup", net)
        if epochs in (problem.epochs // 4, problem.epochs // 2, problem.epochs):
            found.append(float(sharpness(net, loss_fn, [batch])))
        with torch.no_grad():
            low = loss_fn(net, batch) < LOSS
        if low and not equal:
            equal.append(float(sharpness(net, loss_fn, [batch])))
        if epochs == problem.epochs:
            flips.update(net)

    fit(net, problem, learning_rate("mnist1d", "static", sign_in), seed, after_epoch=measure)
    stages = flips.compute()
    return [100 * stages[name] for name in ("start", "start_to_warmup", "warmup")] + found + (equal or [float("nan")])


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool() as pool:
        plain, signin = (list(zip(*pool.map(partial(run, form), SEEDS), strict=True)) for form in (False, True))
    print("| | plain | Sign-In | difference, paired |\n|---|---|---|---|")
    for name, a, b in zip(ROWS, plain, signin, strict=True):
        gains = [y - x for x, y in zip(a, b, strict=True)]
        print(f"| {name} | {mean_interval(list(a))} | {mean_interval(list(b))} | {mean_interval(gains)} |")
