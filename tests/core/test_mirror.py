"""``parametrization="mirror"``: one tensor that moves as m ⊙ w does with a rescale after every step."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F

from lightning_signin import (
    SignInError,
    decay_theta,
    effective_weights,
    load_sparse_state,
    mirror_steps,
    plain_view,
    rescale_,
    sparse_state,
    sparsify,
)
from lightning_signin.core.step_kind import step_kind
from lightning_signin.metrics import memory
from tests.resuming import SaveEverywhere
from tests.small import callback, copies, differing, loader, seeded, trainer

OPTIMIZERS = [("SGD", {}), ("SGD", {"weight_decay": 0.1}), ("SGD", {"momentum": 0.9, "nesterov": True})]
OPTIMIZERS += [("Adam", {}), ("Adam", {"amsgrad": True}), ("AdamW", {"weight_decay": 0.5}), ("Adagrad", {})]
OPTIMIZERS += [("RMSprop", {}), ("NAdam", {})]


def made(form, optimizer, rate, **options):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3)).double()
    sparsify(net, sparsity=0.5, parametrization=form, beta=1.5)
    with plain_view(net):
        own = getattr(torch.optim, optimizer)(net.parameters(), lr=rate, **options)
    decay_theta(net, [own])
    mirror_steps(net, [own])
    return net, own


def moved(form, optimizer, rate, **options):
    """How far θ moves in five steps."""
    net, own = made(form, optimizer, rate, **options)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 20, dtype=torch.float64, generator=generator), torch.arange(64) % 3
    before = effective_weights(net)
    for _ in range(5):
        own.zero_grad()
        F.cross_entropy(net(x), y).backward()
        own.step()
        if form == "sign-in":
            rescale_(net, optimizers=[own], momentum="carry")
    return torch.cat([(after - before[name]).flatten() for name, after in effective_weights(net).items()])


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS, ids=str)
def test_steps_are_those_of_products_up_to_second_order(optimizer, options):
    """The difference falls with the square of the learning rate, the steps themselves with the rate."""
    off = []
    for rate in (1e-3, 1e-4):
        mirror, products = (moved(form, optimizer, rate, **options) for form in ("mirror", "sign-in"))
        off.append(float((mirror - products).norm() / products.norm()))
    assert off[0] < 0.02
    assert off[1] < 0.15 * off[0]
    plain = moved("plain", optimizer, 1e-4, **options)
    assert (plain - products).norm() > 0.1 * products.norm()


def test_kinds_of_steps():
    def kind(optimizer, **options):
        own = optimizer([nn.Parameter(torch.zeros(3))], **options)
        return step_kind(own, own.param_groups[0])

    assert kind(torch.optim.SGD, lr=0.1, momentum=0.9) == "proportional"
    assert kind(torch.optim.ASGD, lr=0.1) == "proportional"
    assert {kind(optimizer) for optimizer in (torch.optim.Adam, torch.optim.RMSprop, torch.optim.Rprop)} == {
        "normalized"
    }

    class Cubic(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 0.1})

        def step(self):
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(parameter.grad**3, alpha=-0.1)

    assert kind(Cubic) is None
    net = sparsify(nn.Linear(9, 9), sparsity=0.5, parametrization="mirror")
    with pytest.raises(SignInError, match="parametrization='mirror' cannot follow Cubic"):
        mirror_steps(net, [Cubic(net.parameters())])


def test_weights_that_train_like_plain_ones_are_told_once():
    net = sparsify(nn.Linear(9, 9), sparsity=0.5, parametrization="mirror")
    with pytest.warns(UserWarning, match="trained like plain ones, until `mirror_steps"):
        net(torch.ones(1, 9))
    net(torch.ones(1, 9))  # warnings are errors here
    net, _ = made("mirror", "SGD", 0.1)
    net(torch.ones(1, 20, dtype=torch.float64))


def test_handle_ends_it_and_a_closure_may_be_called_twice():
    net, own = made("mirror", "SGD", 0.1)
    twin, other = made("mirror", "SGD", 0.1)
    x = torch.randn(4, 20, dtype=torch.float64)

    def closure(net, own):
        own.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    closure(net, own)
    own.step()
    other.step(lambda: closure(twin, other))
    assert differing(effective_weights(net), effective_weights(twin)) == []
    plain, third = made("plain", "SGD", 0.1)
    mirror, fourth = made("mirror", "SGD", 0.1)
    handle = mirror_steps(mirror, [])
    handle.remove()
    for each, step in ((plain, third), (mirror, fourth)):
        closure(each, step)
    assert differing(copies(plain), copies(mirror)) == []


def test_memory_is_that_of_a_plain_masked_weight():
    sizes = {}
    for form in ("sign-in", "mirror", "plain"):
        row = memory(sparsify(nn.Linear(100, 100, bias=False), sparsity=0.9, parametrization=form)).layers[0]
        sizes[form] = row.sparse.total
    assert sizes["mirror"] == sizes["plain"] == 4 / 7 * sizes["sign-in"]


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_fit_moves_otherwise_than_a_plain_one_and_resumes_exactly(optimizer, tmp_path):
    whole = seeded(optimizer)
    trainer(callback(parametrization="mirror"), SaveEverywhere(tmp_path)).fit(whole, loader())
    plain = seeded(optimizer)
    trainer(callback(parametrization="plain")).fit(plain, loader())
    assert differing(copies(whole), copies(plain)) != []
    again = seeded(optimizer)
    trainer(callback(parametrization="mirror")).fit(again, loader(), ckpt_path=tmp_path / "step15.ckpt")
    assert differing(copies(again), copies(whole)) == []


def test_users_see_the_gradient_of_the_loss():
    class Watch(Callback):
        def __init__(self):
            self.seen = []

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.seen.append(module.fc2.weight.grad.clone())

    found = {}
    for form in ("mirror", "plain"):
        watch = Watch()
        trainer(callback(parametrization=form), watch, epochs=1, limit_train_batches=1).fit(seeded(), loader())
        found[form] = watch.seen[0]
    assert torch.equal(found["mirror"], found["plain"])


def test_state_of_another_form_is_refused():
    mirror, plain = (sparsify(nn.Linear(9, 9), sparsity=0.5, parametrization=form) for form in ("mirror", "plain"))
    with pytest.raises(SignInError, match=r"saved as θ in the mirror with beta=1\.0, and is a plain masked weight"):
        load_sparse_state(plain, sparse_state(mirror))
    assert copy.deepcopy(mirror).parametrizations.weight[0].beta == 1.0
