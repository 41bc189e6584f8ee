"""Sign flips against a brute-force count, through mask updates, rescales and a resume."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_signin import effective_weights, flip_signs_, masks, sparsify
from lightning_signin.core.weights import sparse_weights
from lightning_signin.metrics import SignFlips, scaling_by_weight
from lightning_signin.updates import ACDC, GMP, Cosine, Cubic, RigL
from lightning_signin.updates.change import change_mask_
from tests.resuming import SaveEverywhere
from tests.small import Small, callback, loader, seeded, trainer

WARMUP = 2


def count(before: dict, after: dict, kept: dict) -> dict[str, float]:
    flips = {name: int((before[name] * after[name] < 0).sum()) for name in before}
    number = {name: int(mask.sum()) for name, mask in kept.items()}
    return {"": sum(flips.values()) / sum(number.values()), **{name: flips[name] / number[name] for name in flips}}


class BruteForce(Callback):
    """Counts from dense copies at every epoch's end, before the callback of the package logs."""

    def __init__(self) -> None:
        self.moments, self.rows = {}, []

    def on_train_start(self, trainer, module):
        self.moments["start"] = effective_weights(module)

    def on_train_epoch_end(self, trainer, module):
        now, kept = effective_weights(module), masks(module)
        row = {("sign_flips", "flips"): count(self.moments["start"], now, kept)}
        if trainer.current_epoch + 1 == WARMUP:
            self.moments["warmup"] = now
            self.to_warmup = count(self.moments["start"], now, kept)
        if "warmup" in self.moments:
            row["flips_warmup_to_now", "flips_warmup_to_now"] = count(self.moments["warmup"], now, kept)
            row["flips_start_to_warmup", "flips_start_to_warmup"] = self.to_warmup
        if "last" in self.moments:
            row["sign_flips_since_last", None] = count(self.moments["last"], now, kept)
        self.moments["last"] = now
        self.rows.append((row, kept))


class Compare(Callback):
    def __init__(self, brute: BruteForce) -> None:
        self.brute, self.compared = brute, 0

    def on_train_epoch_end(self, trainer, module):
        metrics = {**trainer.logged_metrics, **trainer.callback_metrics}
        logged = {name.removeprefix("signin/"): float(value) for name, value in metrics.items()}
        row, kept = self.brute.rows[-1]
        for (whole, layer), expected in row.items():
            for name, share in expected.items():
                if name == "":
                    assert logged[whole] == pytest.approx(share, abs=1e-6), (whole, trainer.current_epoch)
                elif layer is not None:
                    assert logged[f"layer/{layer}/{name}"] == pytest.approx(share, abs=1e-6)
                    self.compared += share > 0
        for name, mask in kept.items():
            assert logged[f"layer/density/{name}"] == pytest.approx(mask.float().mean().item())


@pytest.mark.parametrize("storage", ["auto", "dense"])
@pytest.mark.parametrize("update", [None, RigL(Cosine(3)), ACDC(), GMP(Cubic(4))], ids=str)
def test_logged_flips_are_those_of_a_brute_force_count(tmp_path, update, storage):
    brute = BruteForce()
    compare = Compare(brute)
    sign_in = callback(update=update, storage=storage, log_layers=True, warmup_epochs=WARMUP)
    logger = CSVLogger(tmp_path)
    trainer(brute, sign_in, compare, logger=logger).fit(seeded("SGD", lr=0.5, momentum=0.5), loader())
    assert "signin/layer/flips/fc1.weight" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert compare.compared > 3


@pytest.mark.parametrize("update", [None, RigL(Cosine(3))], ids=str)
@pytest.mark.parametrize("moment", ["epoch0", "step13", "epoch1", "step25"])
def test_a_resumed_run_counts_as_the_uninterrupted_one(tmp_path, update, moment):
    def run(*extra, ckpt_path=None):
        module = seeded("SGD", lr=0.5, momentum=0.5)
        if ckpt_path:
            torch.manual_seed(99)
            module = Small("SGD", lr=0.5, momentum=0.5)
        sign_in = callback(update=update, log_layers=True, warmup_epochs=WARMUP)
        runner = trainer(sign_in, *extra, logger=CSVLogger(tmp_path))
        runner.fit(module, loader(), ckpt_path=ckpt_path)
        metrics = {**runner.logged_metrics, **runner.callback_metrics}
        return {name: float(value) for name, value in metrics.items() if name.startswith("signin/")}

    whole = run(SaveEverywhere(tmp_path))
    assert run(ckpt_path=tmp_path / f"{moment}.ckpt") == whole


def test_references_take_a_bit_a_weight():
    net = sparsify(nn.Linear(400, 400), sparsity=0.9)
    flips = SignFlips(net)
    packed = flips.references["start"]["signs"]["weight"]
    assert packed["nonzero"] is None
    assert packed["positive"].numel() == 16_000 / 8
    moving = SignFlips(net, moving=True).references["start"]
    assert moving["masks"]["weight"].numel() == 160_000 / 8


def test_zeros_have_no_sign():
    net = sparsify(nn.Linear(10, 10), sparsity=0.5, parametrization="plain")
    (theta,) = sparse_weights(net)["weight"].factors
    with torch.no_grad():
        theta[:10] = 0
    flips = SignFlips(net)
    with torch.no_grad():
        theta[:10] = 1
        theta[10:20] = 0
        theta[20:30].neg_()
    flips.update(net)
    assert flips.compute()["start"] == 10 / 50


def test_weights_outside_of_a_moved_mask_are_not_counted():
    net = sparsify(nn.Linear(10, 10), sparsity=0.5)
    flips = SignFlips(net, moving=True)
    old = masks(net)["weight"]
    flip_signs_(net, 1.0)
    new = old & (torch.rand(10, 10) < 0.5) | ~old
    change_mask_(sparse_weights(net)["weight"], new)
    flips.update(net)
    assert flips.compute()["start"] == pytest.approx((old & new).sum().item() / new.sum().item())


def test_it_is_a_metric():
    net = sparsify(nn.Linear(10, 10), sparsity=0.5)
    flips = SignFlips(net)
    flips(flip_signs_(net, 0.2))  # torchmetrics' forward: update, compute
    assert flips.compute() == {"start": 0.2}
    flips.update(flip_signs_(net, 1.0))
    assert flips.compute()["start"] == pytest.approx(0.8)
    assert flips.compute()["last"] == 1.0
    flips.mark("warmup", net)
    flips.update(flip_signs_(net, 0.5, seed=1))
    found = flips.compute()
    assert found["start_to_warmup"] == pytest.approx(0.8)
    assert found["warmup"] == 0.5
    flips.reset()
    assert flips.compute() == {}


def test_ranks_with_the_same_weights_keep_the_shares():
    """Sums over two ranks: twice the flips of twice the weights."""
    net = sparsify(nn.Linear(10, 10), sparsity=0.5)
    flips = SignFlips(net)
    flips.update(flip_signs_(net, 0.3))
    assert flips._reductions["flipped"] is flips._reductions["kept"]
    flips.flipped, flips.kept = 2 * flips.flipped, 2 * flips.kept
    assert flips.compute() == {"start": pytest.approx(0.3)}


def test_scaling_of_layers_has_mean_and_spread():
    net = sparsify(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), sparsity=0.5, beta={"0.*": 2.0, "*": 1.0})
    m, w = sparse_weights(net)["1.weight"].factors
    with torch.no_grad():
        m.mul_(torch.rand_like(m))
    found = scaling_by_weight(net)
    values = (m**2 - w**2).double()[masks(net)["1.weight"]]  # in dense storage, at a density of 3/4
    assert found["0.weight"][:2] == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-4))
    assert found["1.weight"].mean == pytest.approx(values.mean().item())
    assert found["1.weight"].spread == pytest.approx(values.std(correction=0).item())


@pytest.mark.parametrize("name", ["warmup_epochs", "sharpness_every_n_epochs", "sharpness_batches"])
def test_bad_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1, got 0"):
        callback(**{name: 0})
