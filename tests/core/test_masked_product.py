"""Dense storage: θ is exactly zero off the mask whatever factors, gradients and optimizers hold there."""

import pytest
import timm.optim
import torch
from torch import nn

from lightning_signin import effective_weights, masks, merge_, plain_view, rescale_, sparsify
from lightning_signin.core.masked_product import bits_like, masked_product
from lightning_signin.core.weights import SparseWeight, sparse_weights, sparsity
from lightning_signin.metrics import scaling_by_weight
from lightning_signin.parametrizations import STR, PILoT, Powerprop, Spred
from lightning_signin.updates.change import change_mask_
from tests.small import Small, callback, loader, trainer

KINDS = {
    "sign-in": "sign-in",
    "plain": "plain",
    "str": STR(s_init=-5.0),
    "str, sign-in": STR(s_init=-5.0, sign_in=True),
    "powerprop": Powerprop(),
    "powerprop, sign-in": Powerprop(sign_in=True),
    "spred": Spred(),
    "pilot": PILoT(),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def filled(kind: str, value: float, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, SparseWeight]:
    """A layer whose masked factors hold a value, as after an optimizer that fills them."""
    net = sparsify(nn.Linear(9, 7).to(dtype), sparsity=0.4, storage="dense", parametrization=KINDS[kind])
    weight = sparse_weights(net)["weight"]
    with torch.no_grad():
        for factor in weight.factors:
            factor[~weight.storage.mask] = value
    return net, weight


@EVERY_KIND
@pytest.mark.parametrize("value", [0.7, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_masked_factors_hold_is_nowhere(kind, value, dtype):
    net, weight = filled(kind, value, dtype)
    clean, _ = filled(kind, 0.0, dtype)
    clean.load_state_dict(net.state_dict())
    off = ~weight.storage.mask
    found = [net.weight, net.state_dict()["weight"], effective_weights(net)["weight"], weight.values(), weight.inner()]
    with plain_view(net):
        found.append(net.weight.detach().clone())
    x = torch.randn(3, 9, dtype=dtype)
    net(x).square().sum().backward()
    found += [factor.grad for factor in weight.factors]
    assert all(tensor[off].eq(0).all() and tensor.isfinite().all() for tensor in found)
    if weight.parametrization.factors == ("m", "w"):
        assert scaling_by_weight(net)["weight"].mean == pytest.approx(1.0, abs=0.02)
        rescale_(net)
        assert not any(factor[off].any() for factor in weight.factors)
    assert merge_(net).weight[off].eq(0).all()


@pytest.mark.parametrize("kind", ["sign-in", "plain"])
def test_weights_that_come_take_nothing_of_what_was_masked(kind):
    net, weight = filled(kind, 0.7)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(3, 9)).sum().backward()
    optimizer.step()
    for factor in weight.factors:
        optimizer.state[factor]["momentum_buffer"].fill_(3.0)
        factor.grad.fill_(3.0)
    off = ~weight.storage.mask
    change_mask_(weight, torch.ones(7, 9, dtype=torch.bool), [optimizer], "dense")
    for factor, start in zip(weight.factors, weight.parametrization.grown, strict=True):
        assert factor[off].eq(start).all()
        assert not factor.grad[off].any()
        assert not optimizer.state[factor]["momentum_buffer"][off].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 2])
def test_product_equals_where(dtype, layout, count):
    mask = torch.rand(4, 3, 5, 2) < 0.6
    a, b = (torch.randn(4, 3, 5, 2).to(dtype).to(memory_format=layout) for _ in range(2))
    bits = bits_like(torch.where(mask, -1, 0), a)
    found = masked_product(a, b if count == 2 else None, bits)
    assert torch.equal(found, torch.where(mask, a * b if count == 2 else a, 0))
    assert found.stride() == a.stride()
    assert bits.itemsize == a.itemsize
    assert bits_like(bits, a) is bits


@pytest.mark.parametrize("kind", ["sign-in", "plain", "powerprop"])
def test_torch_func_goes_on(kind):
    """The transforms of a filled layer are those of the mask times the product, written out."""
    _, weight = filled(kind, 0.7, torch.float64)
    mask, form = weight.storage.mask, weight.parametrization
    factors = tuple(factor.detach() for factor in weight.factors)

    def plainly(*factors):
        inner = torch.where(mask, factors[0] * factors[1] if len(factors) == 2 else factors[0], 0.0)
        return inner if form.elementwise_map is None else form.elementwise_map(inner)

    def loss(of):
        return lambda *factors: (of(*factors).sin() * torch.arange(9)).sum()

    places = tuple(range(len(factors)))
    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.jacrev, torch.func.hessian):
        found, expected = (transform(loss(of), argnums=places)(*factors) for of in (form, plainly))
        torch.testing.assert_close(found, expected)
    many = tuple(torch.stack([factor, 2 * factor]) for factor in factors)
    torch.testing.assert_close(torch.vmap(form)(*many), torch.vmap(plainly)(*many))
    tangents = torch.func.jvp(form, factors, factors), torch.func.jvp(plainly, factors, factors)
    torch.testing.assert_close(*tangents)
    inputs = [factor.clone().requires_grad_() for factor in factors]
    many = torch.randn(3, 7, 9, dtype=torch.float64)
    pairs = [torch.autograd.grad(of(*inputs), inputs, many, is_grads_batched=True) for of in (form, plainly)]
    torch.testing.assert_close(*pairs)


def test_a_compiled_layer_masks_as_well():
    torch._dynamo.reset()
    net, weight = filled("sign-in", float("nan"))
    found = torch.compile(net, backend="eager", fullgraph=True)
    found(torch.ones(2, 9)).sum().backward()
    assert all(factor.grad.isfinite().all() for factor in weight.factors)


def test_memory_that_is_lent_is_written_anew(monkeypatch):
    monkeypatch.setattr("lightning_signin.core.storage._FAULTED", 0)
    net = sparsify(nn.Linear(9, 7), sparsity=0.4, storage="dense")
    twin = merge_(sparsify(nn.Linear(9, 7), sparsity=0.4, storage="dense"))
    for value in (1.0, 2.0):
        net.load_state_dict({name: value * tensor for name, tensor in twin.state_dict().items()})
        x = torch.randn(2, 9)
        torch.testing.assert_close(net(x), torch.nn.functional.linear(x, value * twin.weight, value * twin.bias))
    found = net(x)
    assert torch.equal(found, net(x)), "the first is in use"


class Noise(Small):
    """Gradient noise (Neelakantan et al., 2015)."""

    def on_before_optimizer_step(self, optimizer):
        for parameter in self.parameters():
            parameter.grad.add_(torch.randn_like(parameter), alpha=1e-3)


class Centralized(Small):
    """Gradient centralization, as in Ranger."""

    def on_before_optimizer_step(self, optimizer):
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.grad.sub_(parameter.grad.mean(1, keepdim=True))


class Langevin(Small):
    """Noise on the parameters after every step."""

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)


class Normalized(torch.optim.Optimizer):
    """Steps of length one for each entry, without an ε: 0 / 0 where nothing is."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                step = p.grad / p.grad.abs() if p.ndim > 1 else p.grad.sign()
                p.sub_(step.nan_to_num(1.0) if p.ndim == 1 else step, alpha=group["lr"])
        return loss


class Mixing(Normalized):
    """Every entry moves with the mean of its row, as with LookSAM, Ranger21 and others that centralize within."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad - (p.grad.mean(-1, keepdim=True) if p.ndim > 1 else 0), alpha=group["lr"])
        return loss


def with_optimizer(make):
    class Other(Small):
        def configure_optimizers(self):
            return make(self.parameters())

    return Other


RUNS = {
    "as it is": Small,
    "noise": Noise,
    "centralized": Centralized,
    "langevin": Langevin,
    "mixing": with_optimizer(Mixing),
    "novograd": with_optimizer(lambda parameters: timm.optim.NvNovoGrad(parameters, lr=1e-3)),
    "lookahead": with_optimizer(lambda parameters: timm.optim.Lookahead(Mixing(parameters))),
    "adan": with_optimizer(lambda parameters: timm.optim.Adan(parameters, lr=1e-3)),
    "lamb": with_optimizer(lambda parameters: timm.optim.Lamb(parameters, lr=1e-3)),
}


NEED_SHAPE = ("mixing", "lookahead")  # a row of a vector is none


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize("kind", RUNS)
def test_the_count_is_exact_whatever_a_run_does(kind, storage):
    torch.manual_seed(0)
    module = RUNS[kind]()
    rescales = {"rescale_every_n_epochs": None} if kind == "lookahead" else {"rescale_momentum": "keep"}
    runner = trainer(callback(sparsity=0.4, storage=storage, **rescales), epochs=2)
    if storage == "compact" and kind in NEED_SHAPE:
        with pytest.raises(ValueError, match=r"depends on the shape of a weight.* Pass storage='dense'"):
            runner.fit(module, loader())
        return
    runner.fit(module, loader())
    weights = [value for name, value in module.state_dict().items() if value.ndim > 1]
    zeros, size = (sum(int(count(w)) for w in weights) for count in (lambda w: (w == 0).sum(), torch.numel))
    assert zeros == size - round(0.6 * size)
    assert runner.callback_metrics["signin/sparsity"].item() == pytest.approx(zeros / size, abs=1e-6)


def test_an_optimizer_that_divides_zero_by_zero_loses_nothing_but_masked_factors():
    net = sparsify(nn.Linear(9, 7), sparsity=0.4, storage="dense")
    optimizer = Normalized(net.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(5, 9)).square().sum().backward()
        assert nn.utils.clip_grad_norm_(net.parameters(), 1.0).isfinite()
        optimizer.step()
    assert any(parameter.isnan().any() for parameter in net.parameters())
    assert net.weight.isfinite().all()
    assert torch.equal(net.weight != 0, masks(net)["weight"])


def test_sparsity_is_counted():
    net = sparsify(nn.Linear(10, 10), sparsity=0.4, storage="dense")
    weight = sparse_weights(net)["weight"]
    with torch.no_grad():
        weight.factors[0].zero_()  # a kept weight that happens to be 0 is kept
    assert sparsity(net) == pytest.approx(0.4)
