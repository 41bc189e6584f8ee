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
from tests.strangers import Lazy, Logged, Lookahead, ScheduleFree

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
    net = network()
    with plain_view(net):
        optimizer = ScheduleFree(net.parameters(), weight_decay=0.1)
    with pytest.warns(UserWarning, match="The `weight_decay` of ScheduleFree is neither added to the gradient nor"):
        decay_theta(net, [optimizer])


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
