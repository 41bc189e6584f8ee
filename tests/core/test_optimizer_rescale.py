"""A rescale changes no θ, now or later: optimizers that hold copies of m and w are refused, all others keep it."""

import copy
import inspect

import pytest
import timm.optim
import torch
from torch import nn

from lightning_signin import effective_weights, plain_view, rescale_, sparsify
from lightning_signin.core.decay_kind import decay_kind
from lightning_signin.core.optimizer_rescale import StateAtRescale
from lightning_signin.core.optimizer_state import check_movable
from lightning_signin.core.optimizers import check_optimizers
from lightning_signin.core.weights import sign_in_weights, sparse_weights
from tests.core.test_optimizer_state import COPIES, TIMM, TORCH
from tests.strangers import SAM

OF_TORCH = {kind.__name__: kind for kind in TORCH if inspect.isclass(kind)}
MOVES_ON = ("rop", "adafactor")  # rates of their own (Rprop), or in the momentum (RMSpropTF, Adafactor of timm)
NEEDS_A_LOOP = {"adahessian", "SparseAdam", "LBFGS"}  # second derivatives, sparse gradients, closures


def network() -> nn.Module:
    return sparsify(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), sparsity=0.5, storage="dense")


def trained(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x = torch.linspace(-1, 1, 24).view(4, 6).sin()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(x).square().sum()
        loss.backward()
        return loss

    for _ in range(steps):
        closure()
        optimizer.step(closure) if isinstance(optimizer, SAM) else optimizer.step()


@pytest.mark.parametrize("name", [*OF_TORCH, *TIMM, "SAM"])
def test_a_rescale_lasts_with_every_optimizer_that_is_not_refused(name):
    """With the learning rate at 0 θ stays where it is for ten steps, at every `momentum` that is taken."""
    if name in NEEDS_A_LOOP:
        pytest.skip("cannot be stepped in this loop")
    for momentum in ("keep", "carry", "clear"):
        net = network()
        try:
            with plain_view(net):
                parameters = list(net.parameters())
                optimizer = (
                    SAM(parameters, lr=0.01)
                    if name == "SAM"
                    else OF_TORCH[name](parameters, lr=0.01)
                    if name in OF_TORCH
                    else timm.optim.create_optimizer_v2(net, name, lr=0.01)
                )
        except ValueError as error:
            assert "mixes the entries" in str(error)  # noqa: PT017
            return
        trained(net, optimizer, 13)
        before = effective_weights(net)
        try:
            rescale_(net, optimizers=[optimizer], momentum=momentum)
        except ValueError as error:
            assert ("has no rule" in str(error) and momentum != "keep") or "MADGRAD cannot follow" in str(error)  # noqa: PT017
            continue
        balanced = [(m**2 - w**2)[m != 0] for m, w in (weight.factors for weight in sign_in_weights(net).values())]
        for values in balanced:
            torch.testing.assert_close(values, torch.ones_like(values))
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = 1e-12, 0.0
        for state in optimizer.state.values():
            state.get("eta", torch.empty(())).zero_()  # ASGD's rate of its next step
        if not any(text in name for text in MOVES_ON):
            trained(net, optimizer, 10)
        for key, theta in effective_weights(net).items():
            torch.testing.assert_close(theta, before[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", ["keep", "carry", "clear"])
@pytest.mark.parametrize("name", [name for name in COPIES if name != "SAM"])
def test_optimizers_with_copies_are_refused_before_anything_changes(name, momentum):
    net = network()
    with plain_view(net):
        optimizer = COPIES[name](list(net.parameters()))
    before = copy.deepcopy(list(net.parameters()))
    with pytest.raises(ValueError, match="cannot follow a rescale of m and w: its steps depend on where") as raised:
        rescale_(net, optimizers=[optimizer], momentum=momentum)
    assert name.split()[-1] in str(raised.value)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_what_trains_other_parameters_is_not_asked():
    net, other = network(), nn.Linear(3, 3)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1), timm.optim.MADGRAD(other.parameters())]
    StateAtRescale("carry", optimizers, sign_in_weights(net).values())


def test_an_optimizer_that_cannot_be_tried_is_said():
    net = network()
    with pytest.warns(UserWarning, match="Whether SparseAdam follows a rescale of m and w is unknown: its step fails"):
        rescale_(net, optimizers=[torch.optim.SparseAdam(net.parameters())])


HALF = [torch.bfloat16, torch.float16]
COMMON = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "SGD, foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, weight_decay=0.01),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, centered=True),
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adagrad": torch.optim.Adagrad,
    "Lion": timm.optim.Lion,
    "Lamb": timm.optim.Lamb,
}


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_what_an_optimizer_does_is_the_same_in_every_precision(name, dtype, storage):
    net = sparsify(nn.Linear(6, 9), sparsity=0.5, storage=storage).to(dtype)
    optimizer = COMMON[name](list(net.parameters()))
    check_optimizers(sparse_weights(net).values(), [optimizer], moving=False)
    check_movable([optimizer])
    wide = COMMON[name]([parameter.detach().float() for parameter in net.parameters()])
    kind, expected = (decay_kind(of, of.param_groups[0]) for of in (optimizer, wide))
    assert kind == expected
    for momentum in ("keep", "carry", "clear"):
        StateAtRescale(momentum, [optimizer], sign_in_weights(net).values())


class Master(torch.optim.SGD):
    """SGD that steps float32 copies of half-precision parameters."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                master = state.setdefault("master", p.float().clone()) if p.itemsize < 4 else p
                master.sub_(p.grad.to(master), alpha=group["lr"])
                p.copy_(master)


class HalfOnly(torch.optim.SGD):
    """SGD for half precision only."""

    def step(self, closure=None):
        assert all(p.itemsize < 4 for group in self.param_groups for p in group["params"])
        super().step(closure)


@pytest.mark.parametrize("dtype", HALF)
def test_what_an_optimizer_does_in_half_precision_only_is_seen(dtype):
    net = network().to(dtype)
    with pytest.raises(ValueError, match="Master cannot follow a rescale"):
        StateAtRescale("keep", [Master(net.parameters(), 0.1)], sign_in_weights(net).values())
    StateAtRescale("keep", [HalfOnly(net.parameters(), 0.1)], sign_in_weights(net).values())
    net = net.float()
    StateAtRescale("carry", [Master(net.parameters(), 0.1)], sign_in_weights(net).values())
