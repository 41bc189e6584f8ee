"""Weight decay on θ: in closed form, for optimizers that couple it with the gradient and for those that do not."""

import copy
import math

import pytest
import timm.optim
import torch
from torch import nn, optim

from lightning_signin import decay_theta, effective_weights, plain_view, sparsify
from lightning_signin.core.decay_kind import decay_kind
from lightning_signin.core.weights import sign_in_weights
from lightning_signin.parametrizations import Powerprop
from tests.core.test_optimizer_state import TIMM
from tests.strangers import Lasso, Lazy, Logged, Lookahead, ScheduleFree

LR, DECAY = 0.05, 0.3
COUPLED = {
    "SGD": lambda p: optim.SGD(p, lr=LR),
    "SGD nesterov": lambda p: optim.SGD(p, lr=LR, momentum=0.9, nesterov=True),
    "SGD maximize": lambda p: optim.SGD(p, lr=LR, momentum=0.9, maximize=True),
    "SGD foreach": lambda p: optim.SGD(p, lr=LR, momentum=0.9, foreach=True),
    "SGD fused": lambda p: optim.SGD(p, lr=LR, momentum=0.9, fused=True),
    "Adam": lambda p: optim.Adam(p, lr=LR),
    "Adam fused": lambda p: optim.Adam(p, lr=LR, fused=True),
    "Adam foreach maximize": lambda p: optim.Adam(p, lr=LR, foreach=True, maximize=True),
    "NAdam": lambda p: optim.NAdam(p, lr=LR),
    "RMSprop": lambda p: optim.RMSprop(p, lr=LR, momentum=0.5),
    "Adagrad": lambda p: optim.Adagrad(p, lr=LR),
    "MADGRAD": lambda p: timm.optim.MADGRAD(p, lr=LR),
}
DECOUPLED = {
    "AdamW": lambda p: optim.AdamW(p, lr=LR),
    "AdamW amsgrad": lambda p: optim.AdamW(p, lr=LR, amsgrad=True),
    "AdamW fused maximize": lambda p: optim.AdamW(p, lr=LR, fused=True, maximize=True),
    "AdamW foreach": lambda p: optim.AdamW(p, lr=LR, foreach=True),
    "AdamW with a rate in a tensor": lambda p: optim.AdamW(p, lr=torch.tensor(LR, dtype=torch.float64), foreach=False),
    "a subclass of AdamW": lambda p: Logged(p, lr=LR),
    "NAdam decoupled": lambda p: optim.NAdam(p, lr=LR, decoupled_weight_decay=True),
    "Lion": lambda p: timm.optim.Lion(p, lr=LR),
    "SGDW": lambda p: timm.optim.SGDW(p, lr=LR, momentum=0.9),
    "Lookahead": lambda p: Lookahead(optim.AdamW(p, lr=LR), k=2),
}


def network(storage: str = "compact", **options: object) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    return sparsify(net, sparsity=0.5, storage=storage, **options)


def built(net: nn.Module, make, decay: float = DECAY) -> optim.Optimizer:
    """One group for the sparse weights, and one for biases, which keep the decay."""
    named = dict(net.named_parameters())
    sparse = [p for name, p in named.items() if "original" in name]
    rest = [p for name, p in named.items() if "original" not in name]
    return make([{"params": sparse, "weight_decay": decay}, {"params": rest, "weight_decay": DECAY}])


def backward(net: nn.Module) -> torch.Tensor:
    net.zero_grad()
    loss = net(torch.linspace(-1, 1, 24).view(4, 6).double().sin()).square().sum()
    loss.backward()
    return loss


def factors_of(net: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    return [weight.factors for weight in sign_in_weights(net).values()]


@torch.no_grad()
def decayed(net: nn.Module, name: str) -> None:
    """The slow reference: what the decay of θ adds to a step that does not decay m and w."""
    for m, w in factors_of(net):
        if name in DECOUPLED:
            for factor in (m, w):
                factor *= math.sqrt(1 - LR * DECAY)
        else:
            sign = -1 if "maximize" in name else 1
            m.grad, w.grad = m.grad + sign * DECAY * (m * w) * w, w.grad + sign * DECAY * (m * w) * m


@pytest.mark.parametrize("storage", ["compact", "dense"])
@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", [*COUPLED, *DECOUPLED])
def test_decay_of_theta_in_closed_form(name, closure, storage):
    if closure and "Lookahead" in name:
        pytest.skip("wraps one that takes the closure")
    make = (COUPLED | DECOUPLED)[name]
    net, slow = network(storage), network(storage)
    optimizer, reference = built(net, make), built(slow, make, decay=0.0)
    handle = decay_theta(net, [optimizer])
    for _ in range(5):
        if closure:
            optimizer.step(lambda: backward(net))
        else:
            backward(net)
            optimizer.step()
        backward(slow)
        decayed(slow, name)
        reference.step()
    assert optimizer.param_groups[0]["weight_decay"] == DECAY
    for one, other in zip(net.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    handle.remove()
    if name != "Lookahead":
        before = copy.deepcopy(net)
        plain = built(before, make)
        plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for each, its in ((net, optimizer), (before, plain)):  # as if it had never been there
            backward(each)
            its.step()
        for one, other in zip(net.parameters(), before.parameters(), strict=True):  # loading has rounded some scalars
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_decoupled_decay_shrinks_theta_and_the_scaling_alike():
    net = network()
    optimizer = built(net, DECOUPLED["AdamW"])
    decay_theta(net, [optimizer])
    before = effective_weights(net)
    scaling = [m**2 - w**2 for m, w in factors_of(net)]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, theta in effective_weights(net).items():
        torch.testing.assert_close(theta, (1 - LR * DECAY) * before[name])
    for (m, w), start in zip(factors_of(net), scaling, strict=True):
        torch.testing.assert_close(m**2 - w**2, (1 - LR * DECAY) * start)


def test_without_the_handle_the_factors_decay():
    net = network()
    optimizer, before = built(net, DECOUPLED["AdamW"]), effective_weights(net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, theta in effective_weights(net).items():
        torch.testing.assert_close(theta, (1 - LR * DECAY) ** 2 * before[name])


def test_of_a_map_its_argument_decays_and_a_plain_weight_as_ever():
    net = network(parametrization=Powerprop(sign_in=True))
    optimizer = built(net, DECOUPLED["AdamW"])
    decay_theta(net, [optimizer])
    before = effective_weights(net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, theta in effective_weights(net).items():  # θ = v |v|
        torch.testing.assert_close(theta, (1 - LR * DECAY) ** 2 * before[name])
    ends = []
    for attached in (False, True):
        net = network(parametrization="plain")
        optimizer = built(net, DECOUPLED["AdamW"])
        if attached:
            decay_theta(net, [optimizer])
        for _ in range(3):
            backward(net)
            optimizer.step()
        ends.append(list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("make", [COUPLED["SGD"], DECOUPLED["AdamW"]])
def test_schedules_of_the_decay_are_followed(make):
    net = network()
    optimizer = built(net, make, decay=0.0)
    decay_theta(net, [optimizer])
    ends = []
    for strength in (0.0, 0.5):
        optimizer.param_groups[0]["weight_decay"] = strength
        before = torch.cat([theta.flatten() for theta in effective_weights(net).values()]).norm()
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        ends.append(torch.cat([theta.flatten() for theta in effective_weights(net).values()]).norm() / before)
    assert ends[0] == 1
    assert ends[1] < 1 - 0.4 * LR * 0.5


@pytest.mark.parametrize("make", [COUPLED["SGD fused"], COUPLED["Adam fused"], DECOUPLED["AdamW fused maximize"]])
def test_fused_steps_under_a_gradient_scaler(make):
    """These unscale the gradients in the step itself, and skip it there if one is not finite."""
    net, slow = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer, reference = built(net, make), built(slow, make)
    for each, its in ((net, optimizer), (slow, reference)):
        decay_theta(each, [its])
    for turn in range(4):
        backward(net)
        for parameter in net.parameters():
            parameter.grad = parameter.grad * (math.inf if turn == 2 else scaler.get_scale())
        scaler.scale(torch.ones(()))  # makes the scaler's tensors
        before = [parameter.detach().clone() for parameter in net.parameters()]
        scaler.step(optimizer)
        scaler.update()
        if turn == 2:
            assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
            continue
        backward(slow)
        reference.step()
    for one, other in zip(net.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_decay_of_another_kind_is_said_and_left_on_the_factors():
    ends = []
    for attached in (True, False):
        net = network()
        with plain_view(net):
            optimizer = Lasso(net.parameters(), lr=LR, weight_decay=DECAY)
        if attached:
            with pytest.warns(
                UserWarning, match="`weight_decay` of Lasso acts on m and w, and not on θ: it is neither"
            ):
                decay_theta(net, [optimizer])
        backward(net)
        optimizer.step()
        ends.append(list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class WithoutHooks(optim.Optimizer):
    """As some write it: it does not call the constructor of torch, so no hooks can be given to its steps."""

    def __init__(self, params):
        self.param_groups = [{"params": list(params), "lr": LR, "weight_decay": DECAY}]
        self.state, self.defaults = {}, {}


def test_an_optimizer_without_hooks_keeps_its_decay_and_it_is_said():
    net = network()
    with pytest.warns(UserWarning, match="The `weight_decay` of WithoutHooks acts on m and w, and not on θ"):
        handle = decay_theta(net, [WithoutHooks(net.parameters())])
    handle.remove()


SEPARATE = {
    "LAMB": lambda p: timm.optim.Lamb(p, lr=LR),
    "NovoGrad": lambda p: timm.optim.NvNovoGrad(p, lr=LR),
    "Adan": lambda p: timm.optim.Adan(p, lr=LR),
    "LaProp": lambda p: timm.optim.LaProp(p, lr=LR),
    "NAdamW corrected": lambda p: timm.optim.NAdamW(p, lr=LR, corrected_weight_decay=True),
    "Adafactor": lambda p: optim.Adafactor(p, lr=LR),
    "ScheduleFree": lambda p: ScheduleFree(p, lr=LR),
}


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", SEPARATE)
def test_of_a_pull_beside_the_step_each_factor_gets_half(name, closure):
    """The slow reference has a group for the factors, with half of the decay."""
    if closure and name == "ScheduleFree":
        pytest.skip("takes no closure")
    net, slow = network("dense"), network("dense")
    sparse = {id(factor) for pair in factors_of(slow) for factor in pair}
    groups = [
        {"params": [p for p in slow.parameters() if id(p) in sparse], "weight_decay": DECAY / 2},
        {"params": [p for p in slow.parameters() if id(p) not in sparse], "weight_decay": DECAY},
    ]
    optimizer = SEPARATE[name]([{"params": list(net.parameters()), "weight_decay": DECAY}])
    reference = SEPARATE[name](groups)
    decay_theta(net, [optimizer])
    for its in (optimizer, reference):
        if isinstance(its, ScheduleFree):
            its.train()
    seen = optimizer.param_groups[0]["params"]
    for _ in range(5):
        if closure:
            optimizer.step(lambda: backward(net))
        else:
            backward(net)
            optimizer.step()
        assert len(optimizer.param_groups) == 1
        assert optimizer.param_groups[0]["params"] is seen
        assert optimizer.param_groups[0]["weight_decay"] == DECAY
        backward(slow)
        reference.step()
    for one, other in zip(net.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    for key in ("step", "k"):
        if key in optimizer.param_groups[0]:
            assert optimizer.param_groups[0][key] == 5


@pytest.mark.parametrize("name", [name for name in SEPARATE if name not in ("LAMB", "ScheduleFree", "Adafactor")])
def test_a_pull_shrinks_theta_as_it_shrinks_a_plain_weight(name):
    """By how much, is measured on steps with and without the decay, from the same point."""
    shrunk = []
    for parametrization in ("plain", "sign-in"):
        ends = []
        for decay in (0.0, 0.1):
            net = network(parametrization=parametrization)
            optimizer = SEPARATE[name]([{"params": list(net.parameters()), "weight_decay": decay, "lr": 1e-3}])
            decay_theta(net, [optimizer])
            for _ in range(3):
                backward(net)
                optimizer.step()
            ends.append(torch.cat([theta[theta != 0] for theta in effective_weights(net).values()]))
        shrunk.append((ends[0] - ends[1]) / ends[0])
    torch.testing.assert_close(shrunk[0].median(), shrunk[1].median(), rtol=0.05, atol=0)


def test_lamb_in_closed_form():
    """One step by hand: the direction of Adam plus half the decay, times the ratio of norms, on m and w each."""
    net = network()
    optimizer = timm.optim.Lamb(
        [{"params": list(net.parameters()), "weight_decay": DECAY}], lr=LR, max_grad_norm=None, trust_clip=False
    )
    decay_theta(net, [optimizer])
    backward(net)
    expected = []
    for factor in (factor for pair in factors_of(net) for factor in pair):
        direction = factor.grad / (factor.grad.abs() + 1e-6) + DECAY / 2 * factor.detach()
        expected.append(factor.detach() - LR * factor.detach().norm() / direction.norm() * direction)
    optimizer.step()
    for factor, value in zip((factor for pair in factors_of(net) for factor in pair), expected, strict=True):
        torch.testing.assert_close(factor.detach(), value, rtol=1e-5, atol=1e-8)


def test_lars_goes_where_the_penalised_loss_falls():
    net = network()
    optimizer = timm.optim.Lars([{"params": list(net.parameters()), "weight_decay": DECAY}], lr=LR, momentum=0.0)
    decay_theta(net, [optimizer])
    backward(net)
    before = [[factor.detach().clone() for factor in pair] for pair in factors_of(net)]
    slopes = [[m.grad + DECAY * m * w * w, w.grad + DECAY * m * w * m] for m, w in factors_of(net)]
    optimizer.step()
    for pair, start, slope in zip(factors_of(net), before, slopes, strict=True):
        for factor, old, down in zip(pair, start, slope, strict=True):
            torch.testing.assert_close(torch.cosine_similarity(old - factor, down, dim=0).item(), 1.0)


SEEN = {
    "SGD": COUPLED["SGD"],
    "Adam foreach maximize": COUPLED["Adam foreach maximize"],
    "AdamW": DECOUPLED["AdamW"],
    "LARS": lambda p: timm.optim.Lars(p, lr=LR),
    "LAMB": SEPARATE["LAMB"],
}


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", SEEN)
def test_gradients_after_a_step_are_those_of_the_loss(name, closure):
    net, plain = network(), network()
    optimizer, seen = built(net, SEEN[name]), []

    def note(*_: object) -> None:
        seen.append([parameter.grad.clone() for parameter in net.parameters()])

    optimizer.register_step_post_hook(note)  # before the decay's own
    decay_theta(net, [optimizer])
    backward(plain)
    expected = [parameter.grad for parameter in plain.parameters()]
    if closure:
        optimizer.step(lambda: backward(net))
    else:
        backward(net)
        own = [parameter.grad for parameter in net.parameters()]
        optimizer.step()
        assert all(parameter.grad is gradient for parameter, gradient in zip(net.parameters(), own, strict=True))
    note()
    for gradients in seen:
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_gradients_after_a_fused_step_are_unscaled_as_without_the_decay():
    found = []
    for attached in (True, False):
        net, scaler = network(), torch.amp.GradScaler("cpu", init_scale=64.0)
        optimizer = built(net, COUPLED["Adam fused"])
        if attached:
            decay_theta(net, [optimizer])
        scaler.scale(torch.ones(()))
        backward(net)
        for parameter in net.parameters():
            parameter.grad *= 64
        scaler.step(optimizer)
        found.append([parameter.grad for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Breaks(optim.SGD):
    """Fails if it is told to, after the hooks before its step."""

    breaks = False

    def step(self, closure=None):
        if self.breaks:
            raise RuntimeError("broken")
        super().step(closure)


@pytest.mark.parametrize("how", ["next step", "remove"])
def test_a_step_that_fails_leaves_nothing_exchanged(how):
    net = network()
    optimizer = built(net, lambda p: Breaks(p, lr=LR))
    handle = decay_theta(net, [optimizer])
    backward(net)
    own = [parameter.grad for parameter in net.parameters()]
    optimizer.breaks = True
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.step()
    assert not all(parameter.grad is gradient for parameter, gradient in zip(net.parameters(), own, strict=True))
    optimizer.breaks = False
    handle.remove() if how == "remove" else optimizer.step()
    assert all(parameter.grad is gradient for parameter, gradient in zip(net.parameters(), own, strict=True))


class Extended(optim.SGD):
    """A subclass that calls the step of its base, around which torch runs all hooks once more."""

    def step(self, closure=None):
        return super().step(closure)


class ExtendedAdamW(optim.AdamW):
    """Computes the loss itself."""

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        super().step()
        return loss


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize(("kind", "base"), [(Extended, optim.SGD), (ExtendedAdamW, optim.AdamW)])
def test_a_step_within_a_step_decays_once(kind, base, closure):
    base([torch.zeros(1)])  # torch gives hooks to a class with its first instance
    ends = []
    for each in (kind, base):
        net = network()
        optimizer = built(net, lambda p, each=each: each(p, lr=LR))
        decay_theta(net, [optimizer])
        for _ in range(3):
            if closure:
                optimizer.step(lambda net=net: backward(net))
            else:
                backward(net)
                optimizer.step()
        ends.append(list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_optimizers_without_weight_decay_are_left_alone():
    net = network()
    optimizer = Lazy(net.parameters())
    handle = decay_theta(net, [optimizer])
    backward(net)
    optimizer.step()
    handle.remove()


def test_a_rate_that_turns_weights_around_is_refused():
    net = network()
    optimizer = optim.AdamW(net.parameters(), lr=2.0, weight_decay=0.6)
    decay_theta(net, [optimizer])
    backward(net)
    with pytest.raises(ValueError, match=r"The learning rate 2.0 times the optimizer's `weight_decay` 0\.6 is 1\.2"):
        optimizer.step()


@pytest.mark.parametrize("name", [*COUPLED, *DECOUPLED])
def test_kinds(name):
    if name == "Lookahead":
        pytest.skip("wraps another")
    optimizer = (COUPLED | DECOUPLED)[name]([torch.zeros(3)])
    kind = decay_kind(optimizer, optimizer.param_groups[0], ndim=2)
    expected = "decoupled" if name in DECOUPLED else "coupled, maximizing" if "maximize" in name else "coupled"
    assert kind == expected


class Odd(optim.Optimizer):
    """Gradient descent with another pull, of λ, p and g."""

    def __init__(self, params, pull):
        super().__init__(params, {"lr": LR, "weight_decay": DECAY})
        self.pull = pull

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign() + self.pull(group["weight_decay"], p, p.grad), alpha=group["lr"])


@pytest.mark.parametrize(
    ("kind", "pull"),
    [
        ("decoupled", lambda decay, p, g: decay * p),
        (None, lambda decay, p, g: decay**2 * p),
        (None, lambda decay, p, g: decay * p * g.norm()),
        (None, lambda decay, p, g: decay * p.abs().sqrt()),
    ],
)
def test_a_pull_that_is_not_in_proportion_to_the_parameter_and_the_decay_is_of_no_kind(kind, pull):
    optimizer = Odd([torch.zeros(3)], pull)
    assert decay_kind(optimizer, optimizer.param_groups[0]) == kind


@pytest.mark.parametrize("name", TIMM)
def test_every_optimizer_of_timm_has_a_kind(name):
    """All but one, which needs a loop of its own."""
    layer = nn.Linear(3, 3, bias=False)
    optimizer = timm.optim.create_optimizer_v2(layer, name, lr=0.01, weight_decay=0.1)
    optimizer = getattr(optimizer, "_base_optimizer", optimizer)
    kind = decay_kind(optimizer, optimizer.param_groups[0], ndim=2)
    assert (kind is None) == (name == "adahessian")
    assert kind != "none"
    assert (kind == "coupled, normalized") == (name in ("lars", "larc", "nlars", "nlarc"))
