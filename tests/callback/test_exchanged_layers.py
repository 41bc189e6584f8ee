"""Layers that are exchanged, moved or pruned while a fit runs: it goes on exactly, or fails at once in words."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_signin import SignInError, masks, merge_, plain_view, sparsify
from tests.small import Small, callback, copies, differing, loader, seeded, trainer

HOOKS = ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_end"]
EVERY_HOOK = pytest.mark.parametrize("hook", HOOKS)


class Once(Callback):
    """Does something to the module in one hook, once."""

    def __init__(self, hook: str, act: Callable[[Any], object]) -> None:
        self.waits = True

        def once(trainer: object, module: LightningModule, *args: object) -> None:
            if self.waits:
                self.waits = False
                act(module)

        setattr(self, hook, once)


class Tail(Small):
    """Two linear layers, as one module."""

    def __init__(self, *args: Any, **options: float) -> None:
        super().__init__(*args, **options)
        self.net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))
        del self.conv, self.norm, self.fc1, self.fc2

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def fitted(*callbacks: object, prepare: Callable[[Any], object] | None = None, **options: Any) -> Tail:
    module = seeded(kind=Tail)
    if prepare is not None:
        prepare(module)
    trainer(callback(**options), *callbacks, epochs=2).fit(module, loader())
    return module


def quantized(module: Any) -> None:
    module.net.qconfig = tq.get_default_qat_qconfig("fbgemm")
    tq.prepare_qat(module.net.train(), inplace=True)


def seen_before(module: Any) -> None:
    assert len(list(module.parameters())) == 4
    quantized(module)


class Taking(nn.Module):
    """Has taken the parameters of a linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.kernel, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.kernel, self.bias)


def taken(module: Any) -> None:
    module.net[0] = Taking(module.net[0])


@pytest.mark.parametrize(
    ("hook", "prepare", "update"),
    [("on_fit_start", quantized, None), ("on_train_start", quantized, "rigl"), ("on_fit_start", seen_before, "rigl")],
)
def test_quantization_in_a_fit_is_that_before_the_fit(hook, prepare, update):
    before, module = fitted(prepare=quantized, update=update), fitted(Once(hook, prepare), update=update)
    assert differing(copies(module), copies(before)) == []
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in before.named_parameters()]
    assert type(module.net[0]) is type(before.net[0])
    assert isinstance(tq.convert(module.net.eval())[0], torch.ao.nn.quantized.Linear)


@pytest.mark.parametrize("prepare", [quantized, taken])
@EVERY_HOOK
def test_layers_that_take_the_parameters_go_on_training_them(prepare, hook):
    kept: dict[str, Any] = {}

    class Notes(Callback):
        def on_train_end(self, trainer, module):
            kept.update(masks(module))

    module = fitted(Once(hook, prepare), Notes())
    first = module.net[0].kernel if prepare is taken else module.net[0].weight
    mask = next(iter(kept.values()))
    assert isinstance(first, nn.Parameter)
    assert type(first) is nn.Parameter
    assert torch.equal(first != 0, mask)
    assert len(kept) == 2
    assert not torch.equal(first, seeded(kind=Tail).net[0].weight * mask)


def test_a_layer_that_takes_the_parameters_trains_as_the_one_before():
    module = fitted(Once("on_train_epoch_start", taken))
    assert torch.equal(module.net[0].kernel, fitted().net[0].weight)


def test_layers_are_exchanged_in_the_plain_view():
    net = sparsify(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), sparsity=0.5)
    kept, x, parameter = masks(net)["0.weight"], torch.randn(3, 8), merge_(copy.deepcopy(net))
    with plain_view(net):
        net[0] = Taking(net[0])
    assert torch.equal(masks(net)["0.kernel"], kept)
    torch.testing.assert_close(net(x), parameter(x))
    assert [name for name, _ in merge_(net).named_parameters()] == ["0.kernel", "0.bias", "1.weight", "1.bias"]


class Adapted(nn.Module):
    """A layer with a low-rank adapter beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(10, 2, bias=False), nn.Linear(2, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0 * self.up(self.down(x))


def adapted(module: Any) -> None:
    state = torch.get_rng_state()
    module.net[0] = Adapted(module.net[0])
    torch.set_rng_state(state)


def compiled(module: Any) -> None:
    module.net = torch.compile(module.net, backend="eager")


@pytest.mark.parametrize(("move", "hook"), [*((adapted, hook) for hook in HOOKS), (compiled, "on_train_start")])
def test_layers_that_are_moved_train_as_where_they_were(move, hook):
    module = fitted(Once(hook, move), log_layers=True)
    others = [value for name, value in module.state_dict().items() if "up" not in name and "down" not in name]
    assert all(map(torch.equal, others, fitted().state_dict().values()))


def dense_again(module: Any) -> None:
    module.net[0] = nn.Linear(10, 16)


def removed(module: Any) -> None:
    module.net[0] = nn.Identity()


def fused(module: Any) -> None:
    module.net = copy.deepcopy(module.net)


@pytest.mark.parametrize("exchange", [dense_again, removed, fused])
@EVERY_HOOK
def test_layers_that_are_exchanged_for_others_are_named(exchange, hook):
    module = seeded(kind=Tail)
    with pytest.raises(SignInError, match=r"net\.0\.weight.* left the module while sparse: the layer was exchanged"):
        trainer(callback(), Once(hook, exchange), epochs=2).fit(module, loader())
    assert not any("parametrizations" in name for name, _ in module.named_parameters())


def test_networks_may_change_places_for_a_validation():
    class Swapping(Tail):
        def on_train_start(self) -> None:
            self.other = copy.deepcopy(self.net).requires_grad_(False)

        def on_validation_start(self) -> None:
            self.net, self.other = self.other, self.net

        on_validation_end = on_validation_start

    first = []
    for kind in (Swapping, Tail):
        module = seeded(kind=kind)
        trainer(callback(), epochs=2, num_sanity_val_steps=0).fit(module, loader(), loader())
        first.append(module.net[0].weight)
    assert torch.equal(*first)


OLD = [
    nn.utils.weight_norm,
    nn.utils.spectral_norm,
    lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    lambda layer: prune.custom_from_mask(layer, "weight", torch.ones(16, 10)),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("act", OLD)
@EVERY_HOOK
def test_norms_and_pruning_by_hooks_are_refused_and_leave_layers_that_run(act, hook):
    module = seeded(kind=Tail)
    with pytest.raises(SignInError, match=r"pruned or parametrized while it is sparse|has no parameter 'weight'"):
        trainer(callback(), Once(hook, lambda module: act(module.net[0])), epochs=2).fit(module, loader())
    assert not any("parametrizations" in name for name, _ in module.named_parameters())
    module(torch.randn(2, 10)).sum().backward()
    assert module.net[2].weight.grad is not None
