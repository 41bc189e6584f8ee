"""The batches of `benchmarks.paper` are the package's own modules, side by side; what its scripts hand to the page."""

import pytest
import torch
from torch import nn

from benchmarks.paper import counts, figure3a, records, report, single_neuron, table6
from benchmarks.paper.single_neuron import CASES, METHODS, Setting
from benchmarks.paper.student import Data, History, make_forms, on_balance, taught, train
from lightning_signin import effective_weights, rescale_, sparsify

STEPS, RATE = 150, 0.02


def as_module(d: int, a: torch.Tensor, w: torch.Tensor) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(d, len(a), bias=False), nn.ReLU(), nn.Linear(len(a), 1, bias=False)).double()
    net.load_state_dict({"0.weight": w, "2.weight": a[None]})
    return net


def descend(net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        ((net(inputs).squeeze(1) - targets).square().mean() / 2).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in ("Overparam", "Overparam + Sign-In") for case in CASES]
)
def test_one_row_is_the_module_of_the_package(name, case):
    setting, method, position = Setting(runs=3, n=40, rate=RATE, seed=9), METHODS[name], list(CASES).index(case)
    data = single_neuron.make_data(setting, method.d)
    a, w = single_neuron.make_start(setting, method.d, list(CASES.values()))
    history = single_neuron.run_method(method, setting, [STEPS], "test")
    net = as_module(5, a[1, [position]], w[1, [position]])
    sparsify(net, sparsity=0.0, parametrization=method.parametrization, beta=1.0)
    descend(rescale_(net), data.inputs[1], data.targets[1])  # at the start a rescale changes nothing
    found = effective_weights(net)
    assert torch.allclose(found["2.weight"][0, 0], history.a[0, 1, position], atol=1e-12)
    assert torch.allclose(found["0.weight"][0], history.w[0, 1, position], atol=1e-12)


def test_one_dimension_on_two_samples_is_the_masked_module_on_all_of_them():
    setting, method = Setting(runs=2, n=40, rate=RATE, seed=9), METHODS["Sign-In"]
    source = torch.Generator().manual_seed(3)
    inputs = torch.randn(2, 40, 5, generator=source, dtype=torch.float64)
    a, w = single_neuron.make_start(setting, 1, [(-1, 1)])
    ones = torch.ones(2, 1, dtype=torch.float64)
    data = single_neuron.condensed(taught(inputs[..., :1], ones, ones.unsqueeze(2)))
    history = train(data, a, w, make_forms("sign-in", a, w, method.betas), RATE, [STEPS])
    net = as_module(5, a[0], torch.cat([w[0], torch.ones(1, 4)], dim=1))
    first = torch.eye(1, 5, dtype=torch.bool)
    masks = {"0.weight": first, "2.weight": torch.ones(1, 1, dtype=torch.bool)}
    sparsify(net, mask=masks, beta={"2.weight": method.betas[0], "0.weight": method.betas[1]})
    descend(net, inputs[0], inputs[0, :, 0].relu())
    found = effective_weights(net)
    assert torch.allclose(found["2.weight"][0], history.a[0, 0], atol=1e-12)
    assert torch.allclose(found["0.weight"][first], history.w[0, 0, :, 0], atol=1e-12)


def test_several_neurons_are_one_student_of_the_package():
    source = torch.Generator().manual_seed(4)
    inputs, teacher_w, w = (
        torch.randn(*shape, generator=source).double() for shape in ((2, 30, 2), (2, 3, 2), (2, 3, 2))
    )
    data, a = taught(inputs, torch.tensor([[1.0, -1.0, 1.0]] * 2).double(), teacher_w), w[..., 0].clone()
    history = train(data, a, w, make_forms("sign-in", a, w, (2.0, 2.0)), RATE, [0, STEPS])
    net = sparsify(as_module(2, a[1], w[1]), sparsity=0.0, beta=2.0)
    descend(net, data.inputs[1], data.targets[1])
    assert torch.allclose(effective_weights(net)["0.weight"], history.w[1, 1], atol=1e-12)
    assert torch.allclose(effective_weights(net)["2.weight"][0], history.a[1, 1], atol=1e-12)
    assert torch.allclose(history.w[0], w, atol=1e-12)


@pytest.mark.parametrize("apart", [False, True])
def test_gradients_are_those_of_the_loss(apart):
    source = torch.Generator().manual_seed(5)
    a, w, inputs = (torch.randn(*shape, generator=source).double() for shape in ((2, 3), (2, 3, 4), (2, 7, 4)))
    data = Data(inputs, inputs[..., 0].relu(), apart)
    a, w = a.requires_grad_(), w.requires_grad_()
    expected = torch.autograd.grad(data.loss(a, w).sum(), (a, w))
    with torch.no_grad():
        found = data.gradients(a, w)
    assert all(torch.allclose(x, y, atol=1e-14) for x, y in zip(found, expected, strict=True))


def test_the_manifold_holds_balance_signs_and_product():
    a, w = torch.tensor([[-2.0, 3.0]]).double(), torch.tensor([[[1.0], [-0.5]]]).double()
    balanced_a, balanced_w = on_balance(a, w)
    assert torch.allclose(balanced_a.abs(), balanced_w.squeeze(2).abs())
    assert torch.allclose(balanced_a * balanced_w.squeeze(2), a * w.squeeze(2))
    assert torch.equal(balanced_a.sign(), a.sign())


def test_a_diverged_run_has_not_recovered():
    lost = History(torch.full((1, 1, 1), torch.nan), torch.ones(1, 1, 1, 2))
    assert not single_neuron.recovered(lost).any()
    assert single_neuron.recovered(History(torch.ones(1, 1, 1), torch.eye(1, 2)[None, None])).all()


@pytest.mark.parametrize(("successes", "trials"), [(0, 100), (7, 20), (100, 100), (1, 1)])
def test_wilson_limits_are_where_the_score_test_stands(successes, trials):
    z, share = 1.959963984540054, successes / trials
    for limit in counts.wilson(successes, trials):
        # The limits are the roots of (p̂ − p)² = z² p (1 − p) / n, which holds at p̂ = 0 and 1 too.
        assert (share - limit) ** 2 == pytest.approx(z * z * limit * (1 - limit) / trials, abs=1e-12)
    assert counts.wilson(0, trials)[1] == pytest.approx(z * z / (trials + z * z))


def test_a_cell_agrees_from_95_and_up_to_5():
    assert [counts.agrees(count, 100, 1) for count in (94, 95, 100)] == [False, True, True]
    assert [counts.agrees(count, 100, 0) for count in (0, 5, 6)] == [True, True, False]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(figure3a, "QUICK_TIME", 2)
    monkeypatch.setattr(table6, "QUICK_TIMES", (1, 2))
    monkeypatch.setattr(table6, "ROUNDED_TIMES", (1,))
    for name, script in {"table6": table6, "figure3a": figure3a}.items():
        records.write(name, script.run(True), quick=True)
    return tmp_path / "quick"


def test_quick_runs_make_results_pictures_and_the_page(stored):
    for name, script in {"table6": table6, "figure3a": figure3a}.items():
        results = records.read(name, quick=True)
        assert {"quick", "environment", "settings", "claims", "counts"} <= results.keys()
        assert {"python", "torch", "lightning_signin", "platform", "threads"} <= results["environment"].keys()
        assert all(row.keys() == {"claim", "paper", "here", "holds"} for row in results["claims"])
        script.draw(results, stored / f"{name}.png")
        assert (stored / f"{name}.png").stat().st_size > 10_000
    page = report.write_page(["table6", "figure3a", "figure5"], quick=True).read_text()
    assert len(records.read("table6", quick=True)["claims"]) == 16
    assert "## Table 6" in page
    assert "## Figure 3(a)" in page
    assert "## Figures 5" not in page  # it has not run


def test_what_json_cannot_hold_is_null(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    records.write("some", {"values": [1.5, float("nan"), [float("inf")]]}, quick=False)
    assert records.read("some", quick=False)["values"] == [1.5, None, [None]]
