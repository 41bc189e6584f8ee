"""STR, powerprop, spred and PILoT against closed forms, and what all parametrizations share."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import nn

from lightning_signin import flip_signs_, masks, merge_, plain_view, rescale_, sparsify
from lightning_signin.core.functional import scaling
from lightning_signin.core.weights import sparse_weights, sparsity
from lightning_signin.parametrizations import PARAMETRIZATIONS, STR, PILoT, Powerprop, Spred, parse_parametrization
from lightning_signin.parametrizations.decay import AdaptiveDecay, add_factor_decay_
from tests.small import callback, copies, loader, seeded, trainer

FORMS = {
    **{name: name for name in PARAMETRIZATIONS},
    "STR at -2": STR(s_init=-2.0),
    "STR with Sign-In": STR(sign_in=True, s_init=-2.0),
    "powerprop 1.5": Powerprop(alpha=1.5),
    "powerprop with Sign-In": Powerprop(sign_in=True, alpha=3.0),
    "spred with Sign-In": Spred(sign_in=True),
    "PILoT with Sign-In": PILoT(sign_in=True),
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
BOTH = pytest.mark.parametrize("storage", ["compact", "dense"])


def sparse(form, storage="compact", **options) -> nn.Module:
    return sparsify(nn.Linear(7, 6).double(), sparsity=0.5, parametrization=form, storage=storage, **options)


def factors(net: nn.Module) -> list[nn.Parameter]:
    return list(sparse_weights(net)["weight"].tensors)


@EVERY_FORM
@BOTH
def test_weights_come_in_and_go_out_as_they_are(form, storage):
    net, plain = sparse(form, storage), nn.Linear(7, 6).double()
    theta = plain.weight.detach().clone()
    theta[0, :3] = 0
    net.load_state_dict({"weight": theta, "bias": plain.bias.detach()})
    expected = theta * masks(net)["weight"]
    torch.testing.assert_close(net.state_dict()["weight"], expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(net.state_dict()["weight"] == 0, expected == 0)
    shown = net.weight.detach().clone()
    assert torch.equal(merge_(net).weight, shown)


@EVERY_FORM
@BOTH
def test_gradients_are_finite_at_zero_and_masked_entries_stay_zero(form, storage):
    net = sparse(form, storage)
    net.load_state_dict({"weight": torch.zeros(6, 7).double(), "bias": torch.zeros(6).double()})
    with plain_view(net):
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (net(torch.randn(5, 7).double()) - 1).square().mean().backward()
        assert all(tensor.grad.isfinite().all() for tensor in factors(net))
        optimizer.step()
    assert not net.weight[~masks(net)["weight"]].any()


@EVERY_FORM
def test_flipped_signs_are_flipped_weights(form):
    net = sparse(form)
    before = net.weight.detach().clone()
    torch.testing.assert_close(flip_signs_(net, 1.0).weight, -before, rtol=1e-12, atol=1e-15)


@EVERY_FORM
def test_rescales_leave_the_weights_and_set_the_scaling(form):
    net = sparse(form, beta=2.0)
    with torch.no_grad():
        for factor in sparse_weights(net)["weight"].factors:
            factor.mul_(1.3)
    before = net.weight.detach().clone()
    rescale_(net)
    torch.testing.assert_close(net.weight, before, rtol=1e-12, atol=1e-15)
    if len(sparse_weights(net)["weight"].factors) == 2:
        torch.testing.assert_close(scaling(*factors(net)[:2]), torch.full_like(factors(net)[0], 2.0))


@pytest.mark.parametrize("sign_in", [False, True])
def test_soft_threshold_and_its_gradients_are_the_papers(sign_in):
    net = sparse(STR(sign_in, s_init=-2.0))
    inner = torch.randn(21, dtype=torch.float64)
    threshold, slope = 1 / (1 + math.exp(0.5)), math.exp(0.5) / (1 + math.exp(0.5)) ** 2
    weight = sparse_weights(net)["weight"]
    weight.set_factors(weight.parametrization.split(inner))
    with torch.no_grad():
        factors(net)[-1].fill_(-0.5)
    upstream = torch.randn(6, 7, dtype=torch.float64)
    (net.weight * upstream).sum().backward()
    mask = masks(net)["weight"]
    of_s, of_inner = 0.0, []
    for v, g, theta in zip(inner.tolist(), upstream[mask].tolist(), net.weight[mask].tolist(), strict=True):
        assert theta == pytest.approx(math.copysign(max(abs(v) - threshold, 0.0), v), abs=1e-12)
        passes = abs(v) > threshold
        of_inner.append(g * passes)
        of_s -= g * math.copysign(1, v) * passes * slope
    assert factors(net)[-1].grad.item() == pytest.approx(of_s, rel=1e-10)
    found = factors(net)[0].grad / (factors(net)[1].detach() if sign_in else 1)
    torch.testing.assert_close(found, torch.tensor(of_inner, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_str_gets_sparse_by_weight_decay_alone():
    """The threshold starts at sigmoid(s) = 0; weight decay draws s up to 0, and zeros appear."""
    module = seeded("SGD", lr=0.2, momentum=0.9, weight_decay=0.05)
    runner = trainer(callback(parametrization=STR(s_init=-20.0), sparsity=None))
    runner.fit(module, loader())
    zeros = sum(int((module.get_parameter(n) == 0).sum()) for n in ("conv.weight", "fc1.weight", "fc2.weight"))
    assert runner.callback_metrics["signin/sparsity"] == pytest.approx(zeros / 1242)
    assert 0.2 < zeros / 1242 < 1


@pytest.mark.parametrize("alpha", [1.5, 2.0, 4.0])
def test_powerprop_learns_in_proportion_to_its_power(alpha):
    net = sparse(Powerprop(alpha=alpha))
    upstream = torch.randn(6, 7, dtype=torch.float64)
    (net.weight * upstream).sum().backward()
    mask, (inner,) = masks(net)["weight"], factors(net)
    for v, theta, g, grad in zip(
        *(t.tolist() for t in (inner, net.weight[mask], upstream[mask], inner.grad)), strict=True
    ):
        assert theta == pytest.approx(v * abs(v) ** (alpha - 1))
        assert grad == pytest.approx(g * alpha * abs(v) ** (alpha - 1))


@pytest.mark.parametrize("form", ["spred", "pilot"])
def test_decay_of_both_factors_is_the_lasso(form):
    """α · (‖m‖² + ‖w‖²) has the minimum 2α · ‖θ‖₁ over all factorizations of θ."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60, 8))
    y = x @ np.array([1.5, -2.0, 0, 0, 0.4, 0, 0, 0]) + 0.1 * generator.standard_normal(60)
    strength = 0.1
    net = sparsify(nn.Linear(8, 1, bias=False).double(), sparsity=0.0, parametrization=form)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    inputs, targets = torch.tensor(x), torch.tensor(y).unsqueeze(1)
    for _ in range(6000):
        optimizer.zero_grad()
        ((net(inputs) - targets).square().mean() / 2).backward()
        add_factor_decay_(factors(net), strength, net.parameters())
        optimizer.step()
    lasso = Lasso(alpha=2 * strength, fit_intercept=False, tol=1e-12).fit(x, y)
    np.testing.assert_allclose(net.weight.detach().numpy()[0], lasso.coef_, atol=2e-5)
    assert (lasso.coef_ == 0).sum() >= 4


def test_pilot_adapts_as_algorithm_1_says():
    decay = AdaptiveDecay(1.0, delta=2.0, least_l1_norm=10.0)
    found = []
    for loss, norm, progress in [
        (1.0, 20, 0.1),  # first epoch: grows
        (0.9, 20, 0.2),  # lower loss: grows
        (0.9, 20, 0.3),  # no lower loss
        (0.8, 9, 0.4),  # the norm has fallen below K
        (0.7, 20, 0.5),  # half of the run still counts
        (0.6, 20, 0.6),  # the second half
    ]:
        decay.epoch_ended(loss, norm, progress)
        found.append(decay.strength)
    assert found == [2, 4, 2, 1, 2, 1]


def test_decays_of_a_fit_are_logged_and_change_the_run():
    runs = {}
    for name, form in {
        "weak": Spred(decay_strength=0.0),
        "strong": Spred(decay_strength=1e-2),
        "pilot": PILoT(decay_strength=1e-2, delta=2.0),
    }.items():
        module = seeded()
        runner = trainer(callback(parametrization=form))
        runner.fit(module, loader())
        logged = runner.callback_metrics
        runs[name] = (
            logged["signin/decay"].item(),
            sum(module.get_parameter(n).abs().sum() for n in ("fc1.weight", "fc2.weight")),
        )
        assert logged["signin/sparsity"] == pytest.approx(1 - 373 / 1242)  # the one-shot rule that belongs to them
    assert runs["strong"][1] < runs["weak"][1]
    assert runs["strong"][0] == pytest.approx(1e-2)
    assert runs["pilot"][0] in [pytest.approx(1e-2 * 2.0**k) for k in (-3, -1, 1)]


def test_a_rule_of_the_users_takes_the_place_of_the_own_one():
    assert type(callback(parametrization="spred").arguments.rule).__name__ == "OneShot"
    assert type(callback(parametrization="spred", update="gmp").arguments.rule).__name__ == "GMP"
    assert callback(parametrization="str").arguments.rule is None


def test_methods_that_prune_start_from_all_weights():
    assert int(masks(sparsify(nn.Linear(10, 10), parametrization="str"))["weight"].sum()) == 100
    assert int(masks(sparsify(nn.Linear(10, 10), parametrization="spred"))["weight"].sum()) == 100
    assert int(masks(sparsify(nn.Linear(10, 10), sparsity=0.5, parametrization="str"))["weight"].sum()) == 50
    assert int(masks(sparsify(nn.Linear(10, 10)))["weight"].sum()) == 10


def test_scalars_are_trained_in_the_group_of_their_weight():
    net = sparse(STR(s_init=-1.0))
    with plain_view(net):
        optimizer = torch.optim.SGD(list(net.named_parameters()), 0.1)
    assert optimizer.param_groups[0]["param_names"] == ["weight.theta", "weight.s", "bias"]
    assert [parameter.ndim for parameter in optimizer.param_groups[0]["params"]] == [1, 0, 1]


def test_sparsity_counts_the_zeros_of_a_threshold():
    net = sparse(STR(s_init=-2.0))
    with torch.no_grad():
        factors(net)[-1].fill_(10.0)
    assert sparsity(net) == 1.0


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("sign_in", "`parametrization` must be one of 'sign-in', 'plain', 'mirror'.*or the import path.*got 'sign_in'"),
        (3, "`parametrization` must be one of .*or a class with arguments; got 3"),
        ("torch.nn.Linear.weird", "got 'torch.nn.Linear.weird'"),
    ],
)
def test_what_is_no_parametrization_is_refused(form, text):
    with pytest.raises(ValueError, match=text):
        parse_parametrization(form)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Powerprop(alpha=1.0), "`alpha` must be above 1, got 1.0"),
        (lambda: Spred(decay_strength=-1), "`decay_strength` must be at least 0, got -1"),
        (lambda: PILoT(delta=0.9), "`delta` must be above 1, got 0.9"),
    ],
)
def test_values_out_of_range_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_every_form_trains_in_a_fit():
    for name, form in FORMS.items():
        module = seeded()
        trainer(callback(parametrization=form), epochs=2).fit(module, loader())
        assert all(value.isfinite().all() for value in copies(module).values()), name
        assert list(copies(module)) == list(copies(seeded()))
