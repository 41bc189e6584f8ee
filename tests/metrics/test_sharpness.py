"""Sharpness against closed forms and explicit Hessians, and the module as it was."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import masks, sparsify
from lightning_signin.metrics import hessian_trace, sharpness
from lightning_signin.metrics.sharpness import lanczos
from tests.resuming import Manual, SaveEverywhere
from tests.small import Small, callback, copies, differing, loader, seeded, trainer

FORMS = [(form, storage) for form in ("sign-in", "plain") for storage in ("compact", "dense")]


def square_loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (net(batch[0]) - batch[1]).square().sum() / 2 / len(batch[0])


def logistic_loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])


@pytest.mark.parametrize(("form", "storage"), FORMS)
def test_linear_regression_is_the_closed_form(form, storage):
    """The Hessian is XᵀX / n on the mask."""
    x = torch.randn(40, 12, dtype=torch.float64)
    net = sparsify(nn.Linear(12, 1, bias=False).double(), sparsity=0.5, parametrization=form, storage=storage)
    kept = x[:, masks(net)["weight"][0]]
    values = torch.linalg.eigvalsh(kept.T @ kept / 40).flip(0)
    found = sharpness(net, square_loss, [(x, torch.zeros(40, 1).double())], k=3)
    torch.testing.assert_close(torch.tensor(found.eigenvalues).double(), values[:3], rtol=1e-3, atol=0)
    trace, error = hessian_trace(net, square_loss, [(x, torch.zeros(40, 1).double())], samples=200)
    assert abs(trace - values.sum().item()) < 4 * error < 0.2 * trace


@pytest.mark.parametrize(("form", "storage"), FORMS)
def test_logistic_regression_is_the_closed_form(form, storage):
    """The Hessian is Xᵀ diag(p (1 − p)) X / n on the mask and the bias."""
    x, y = torch.randn(60, 10, dtype=torch.float64), (torch.rand(60, 1) < 0.5).double()
    net = sparsify(nn.Linear(10, 1).double(), sparsity=0.4, parametrization=form, storage=storage)
    p = net(x).sigmoid().detach()
    columns = torch.cat([x[:, masks(net)["weight"][0]], torch.ones(60, 1).double()], 1)
    values = torch.linalg.eigvalsh(columns.T @ (p * (1 - p) * columns) / 60)
    assert float(sharpness(net, logistic_loss, [(x, y)])) == pytest.approx(values[-1].item(), rel=1e-3)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize(("form", "storage"), FORMS)
@pytest.mark.parametrize("batches", [1, 3])
def test_masked_network_is_its_explicit_hessian(form, storage, batches):
    net = sparsify(two_layers(), sparsity=0.5, parametrization=form, storage=storage)
    data = [(torch.randn(9, 6).double(), torch.randn(9, 3).double()) for _ in range(batches)]
    plain = two_layers()
    plain.load_state_dict(net.state_dict())
    names = [name for name, _ in plain.named_parameters()]

    def loss(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [p.numel() for p in plain.parameters()])
        values = {n: part.view(p.shape) for n, part, p in zip(names, parts, plain.parameters(), strict=True)}
        results = [torch.func.functional_call(plain, values, (x,)) for x, _ in data]
        return torch.stack(
            [square_loss(lambda _, r=r: r, (x, y)) for r, (x, y) in zip(results, data, strict=True)]
        ).mean()

    whole = torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in plain.parameters()]))
    known = masks(net)
    kept = torch.cat(
        [
            known[n].flatten() if n in known else torch.ones(p.numel(), dtype=torch.bool)
            for n, p in plain.named_parameters()
        ]
    )
    values = torch.linalg.eigvalsh(whole[kept][:, kept]).flip(0)
    found = sharpness(net, square_loss, data, k=4, tol=1e-5)
    torch.testing.assert_close(torch.tensor(found.eigenvalues).double(), values[:4], rtol=1e-5, atol=0)
    assert found.converged
    assert found.error <= 1e-5
    trace, error = hessian_trace(net, square_loss, data, samples=400)
    assert abs(trace - values.sum().item()) < 4 * error


def test_the_stated_error_is_that_of_spectra_with_outliers():
    """As those of networks are: a bulk near 0 and a few large eigenvalues."""
    for seed in range(20):
        torch.manual_seed(seed)
        values = torch.cat([0.1 * torch.randn(190), 10 * torch.rand(10) + torch.arange(10)]).double()
        basis = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64)).Q
        matrix = basis * values @ basis.T
        for tol in (1e-2, 1e-3, 1e-6):
            found = lanczos(lambda v, m=matrix: m @ v, 200, torch.randn(200).double(), k=1, tol=tol, max_products=200)
            assert abs(float(found) / values.max().item() - 1) <= tol
            assert found.products < 40


def test_products_are_counted_and_bounded():
    net, calls = two_layers(), []
    data = [(torch.randn(9, 6).double(), torch.randn(9, 3).double())]
    few = sharpness(net, square_loss, data, max_products=2, tol=1e-9)
    assert (few.products, few.converged) == (2, False)
    assert few.error > 1e-9

    def counted(vector: Tensor) -> Tensor:
        calls.append(1)
        return vector * torch.arange(1.0, 51.0)

    found = lanczos(counted, 50, torch.ones(50), k=1, tol=1e-4, max_products=50)
    assert found.products == len(calls)


def test_a_small_operator_ends_exactly():
    found = lanczos(lambda v: 3.0 * v, 5, torch.randn(5).double(), k=1, tol=1e-12, max_products=50)
    assert found.products == 1
    assert float(found) == pytest.approx(3.0, rel=1e-12)


class Mixed(nn.Module):
    """Convolution, batch norm, dropout, attention and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x))).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.recurrent(x)[0][:, -1])


@pytest.mark.parametrize("train", [False, True])
def test_the_module_is_as_it_was(train):
    net = sparsify(Mixed(), sparsity=0.5)
    x, y = torch.randn(8, 3, 7), torch.randint(4, (8,))
    F.cross_entropy(net(x), y).backward()
    before, modes = copies(net), [module.training for module in net.modules()]
    gradients, state = [p.grad.clone() for p in net.parameters()], torch.get_rng_state()
    found = [sharpness(net, lambda n, b: F.cross_entropy(n(b[0]), b[1]), [(x, y)], train=train) for _ in range(2)]
    assert found[0] == found[1]  # the same dropout, the same start
    assert differing(before, copies(net)) == []
    assert modes == [module.training for module in net.modules()]
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, net.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert float(found[0]) > 0


@pytest.mark.parametrize(
    ("loss", "batches", "options", "text"),
    [
        (square_loss, [], {}, "`batches` is empty"),
        (lambda net, b: net(b[0]), None, {}, r"must return a tensor of one number, got a tensor of shape \(9, 3\)"),
        (lambda net, b: None, None, {}, "must return a tensor of one number, got None"),
        (lambda net, b: net(b[0]).sum() * math.inf, None, {}, "The loss is (nan|-?inf): its curvature is not defined"),
        (lambda net, b: net[2](torch.ones(8).double()).sum(), None, {}, "The loss is linear in the parameters"),
        (square_loss, None, {"k": 0}, "`k` must be a whole number of at least 1, got 0"),
        (square_loss, None, {"tol": 0}, "`tol` must be above 0, got 0"),
    ],
)
def test_what_has_no_curvature_is_refused(loss, batches, options, text):
    data = [(torch.randn(9, 6).double(), torch.randn(9, 3).double())] if batches is None else batches
    with pytest.raises(ValueError, match=text):
        sharpness(two_layers(), loss, data, **options)


def test_trace_needs_two_samples():
    with pytest.raises(ValueError, match=r"`samples` must be a whole number of at least 2, got 1\. A standard error"):
        hessian_trace(two_layers(), square_loss, [], samples=1)


class Record(Callback):
    def __init__(self) -> None:
        self.found, self.explicit, self.module = [], [], None

    def on_train_epoch_end(self, trainer, module):
        if "signin/sharpness" in trainer.callback_metrics:
            self.found.append(trainer.callback_metrics["signin/sharpness"].item())


@pytest.mark.parametrize("model", [Small, Manual], ids=["automatic", "manual"])
def test_a_fit_measures_its_training_step_and_goes_on_as_without(model):
    """The run is bit for bit that without measuring; the sharpness is that of the same batches every time."""
    weights, record = [], Record()
    for every in (None, 2):
        seeded()
        module = model()
        runner = trainer(callback(sharpness_every_n_epochs=every, sharpness_batches=2), record)
        runner.fit(module, loader())
        weights.append((copies(module), module.losses[-40:]))
    assert differing(weights[0][0], weights[1][0]) == []
    assert len(record.found) == 3  # after epochs 1 and 3; at the end of epoch 2 the old value stands
    assert record.found[0] == record.found[1] != record.found[2]
    assert all(value > 0 for value in record.found)


def test_resumed_fits_measure_the_same(tmp_path):
    def run(*extra, ckpt_path=None):
        record = Record()
        module = seeded()
        if ckpt_path:
            torch.manual_seed(99)
            module = Small()
        trainer(callback(sharpness_every_n_epochs=1), record, *extra).fit(module, loader(), ckpt_path=ckpt_path)
        return record.found

    whole = run(SaveEverywhere(tmp_path))
    assert run(ckpt_path=tmp_path / "epoch1.ckpt") == whole[2:]
    assert run(ckpt_path=tmp_path / "step25.ckpt") == whole[2:]
