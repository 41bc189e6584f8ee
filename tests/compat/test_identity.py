"""What a module notes at or about its parameters in ``__init__`` keeps its meaning while they are sparse."""

import gc
import weakref

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adagrad, AdamW

from lightning_signin import SignInCallback
from lightning_signin.core.weights import sparse_weights
from tests.small import Small, callback, copies, differing, loader, trainer


class Net(Small):
    """The subclasses below note something, and use it; with ``noted=False`` they write the same without any note."""

    def __init__(self, noted: bool = True) -> None:
        super().__init__(epochs=2)
        self.noted = noted
        self.weights = [self.conv.weight, self.fc1.weight]
        if noted:
            self.note()

    def note(self) -> None:
        pass

    def groups(self) -> list[dict]:
        return [{"params": list(self.parameters())}]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return SGD(self.groups(), lr=0.1, momentum=0.9)

    def here(self) -> list[Tensor]:
        """The weights by a note, or as the module has them now."""
        return self.weights if self.noted else [self.conv.weight, self.fc1.weight]


class Attributes(Net):
    def note(self) -> None:
        self.fc1.weight.lr_scale = self.norm.bias.lr_scale = 0.1
        self.conv.weight._no_weight_decay = True
        self.fc2.weight._optim = {"lr": 0.5}

    def groups(self) -> list[dict]:
        groups = []
        for name, p in self.named_parameters():
            scaled, decays, own = name in ("fc1.weight", "norm.bias"), name != "conv.weight", name == "fc2.weight"
            if self.noted:
                scaled, decays = hasattr(p, "lr_scale"), not getattr(p, "_no_weight_decay", False)
                own = hasattr(p, "_optim")
            groups.append({"params": [p], "weight_decay": 0.01 * decays, "lr": 0.5 if own else 0.01 if scaled else 0.1})
        return groups


class ScaledSGD(SGD):
    """Scales the gradient of a parameter by an attribute that it has at the time of a step."""

    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(getattr(p, "lr_scale", 1.0))
        super().step()
        return loss


class AttributesAtSteps(Net):
    def note(self) -> None:
        self.fc1.weight.lr_scale = 0.1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.noted:
            return ScaledSGD(self.parameters(), lr=0.1)
        return SGD([{"params": [p], "lr": 0.01 if n == "fc1.weight" else 0.1} for n, p in self.named_parameters()])


class Ids(Net):
    def note(self) -> None:
        self.head = {id(p) for p in self.fc2.parameters()}

    def groups(self) -> list[dict]:
        named = self.named_parameters()
        of_head = {n: id(p) in self.head if self.noted else n.startswith("fc2") for n, p in named}
        split = [[p for n, p in self.named_parameters() if of_head[n] == head] for head in (True, False)]
        return [{"params": split[0], "lr": 0.5}, {"params": split[1], "lr": 0.05}]


class Keys(Net):
    def note(self) -> None:
        self.rates = {p: 0.02 * i for i, p in enumerate(self.parameters(), 1)}

    def groups(self) -> list[dict]:
        rates = {n: 0.02 * i for i, (n, _) in enumerate(self.named_parameters(), 1)}
        of = self.named_parameters()
        return [{"params": [p], "lr": self.rates[p] if self.noted else rates[n]} for n, p in of]


class Lists(Net):
    def note(self) -> None:
        self.rest = [p for p in self.parameters() if id(p) not in map(id, self.weights)]

    def groups(self) -> list[dict]:
        names = ("conv.weight", "fc1.weight")
        rest = self.rest if self.noted else [p for n, p in self.named_parameters() if n not in names]
        return [{"params": self.here(), "lr": 0.02}, {"params": rest}]


class Penalty(Net):
    def training_step(self, batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 0.05 * sum(w.square().sum() for w in self.here())


class Clipping(Net):
    def on_before_optimizer_step(self, optimizer) -> None:
        clip_grad_norm_(self.here(), 0.2)


class Decay(Net):  # decoupled, of one's own
    @torch.no_grad()
    def on_train_batch_end(self, *_) -> None:
        for weight in self.here():
            weight.mul_(0.99)


class Average(Net):
    def note(self) -> None:
        self.refs = [weakref.ref(w) for w in self.weights]

    def on_fit_start(self) -> None:
        self.mean = [torch.zeros_like(w) for w in self.here()]

    @torch.no_grad()
    def on_train_batch_end(self, *_) -> None:
        now = [ref() for ref in self.refs] if self.noted else self.here()
        for mean, weight in zip(self.mean, now, strict=True):
            mean.lerp_(weight.detach(), 0.1)

    def on_fit_end(self) -> None:
        self.means = nn.ParameterList(self.mean)  # in the state dict


class Closure(Net):  # a decoder that is tied by a closure
    def note(self) -> None:
        weight = self.fc1.weight
        self.decode = lambda hidden: F.linear(hidden, weight.T)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        x = self.norm(self.conv(batch[0].unsqueeze(1))).relu().flatten(1)
        hidden = self.fc1(x)
        again = self.decode(hidden) if self.noted else F.linear(hidden, self.fc1.weight.T)
        return super().training_step(batch, batch_idx) + F.mse_loss(again, x)


class Hooks(Net):
    def note(self) -> None:
        self.fc1.weight.register_hook(lambda gradient: 0.1 * gradient)

    def groups(self) -> list[dict]:
        rates = {"fc1.weight": 0.1 if self.noted else 0.01}
        return [{"params": [p], "lr": rates.get(n, 0.1)} for n, p in self.named_parameters()]


class Stepping(Net):  # the optimizers step in the backward pass
    def __init__(self, noted: bool = True) -> None:
        super().__init__(noted)
        self.automatic_optimization = False

    def note(self) -> None:
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(self.step)

    def step(self, parameter: nn.Parameter) -> None:
        self.of[parameter].step()
        self.of[parameter].zero_grad()

    def training_step(self, batch, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in [] if self.noted else self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> list:
        self.of = {p: SGD([p], lr=0.1) for p in self.parameters()}
        return list(self.of.values())


class Early(Net):  # Adagrad makes its state in the constructor
    def note(self) -> None:
        self.optimizer_of_mine = Adagrad(self.named_parameters(), lr=0.05)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer_of_mine if self.noted else Adagrad(self.parameters(), lr=0.05)


KINDS = [Attributes, AttributesAtSteps, Ids, Keys, Lists, Penalty, Clipping, Decay, Average, Closure, Hooks, Stepping]
KINDS += [Early]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
MASKED = pytest.mark.parametrize(
    "options",
    [{}, {"parametrization": "plain"}, {"sparsity": 0.2, "parametrization": "plain"}],
    ids=["sign-in", "plain", "plain-dense"],
)


def made(kind: type[Net], noted: bool = True) -> Net:
    seed_everything(1, verbose=False)
    return kind(noted)


def fitted(module: LightningModule, *callbacks, epochs: int = 2) -> LightningModule:
    trainer(*callbacks, epochs=epochs).fit(module, loader())
    return module


def plain() -> SignInCallback:
    return SignInCallback(sparsity=0.0, parametrization="plain")


@EVERY_KIND
def test_without_a_mask_the_run_is_that_of_the_plain_module(kind):
    without, with_it = fitted(made(kind)), made(kind)
    before = [id(parameter) for parameter in with_it.parameters()]
    fitted(with_it, plain())
    assert with_it.losses == without.losses
    assert not differing(copies(with_it), copies(without))
    assert [id(parameter) for parameter in with_it.parameters()][: len(before)] == before
    assert [vars(p) for p in with_it.parameters()] == [vars(p) for p in without.parameters()]


@EVERY_KIND
@MASKED
def test_with_a_mask_a_note_means_what_is_written_without_it(kind, options):
    written = fitted(made(kind, noted=False), callback(seed=3, rescale_momentum="keep", **options))
    noted = made(kind)
    before = [id(parameter) for parameter in noted.parameters()]
    fitted(noted, callback(seed=3, rescale_momentum="keep", **options))
    assert torch.allclose(torch.tensor(noted.losses), torch.tensor(written.losses), rtol=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(noted.parameters(), written.parameters(), strict=True))
    assert [id(parameter) for parameter in noted.parameters()][: len(before)] == before
    assert all(type(parameter) is nn.Parameter for parameter in noted.parameters())


# What the others note does not show in the losses, or is what Net does without it.
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in (Average, Stepping)], ids=lambda kind: kind.__name__)
def test_the_notes_of_these_tests_matter(kind):
    assert fitted(made(kind)).losses != fitted(made(Net)).losses


class Outlives(Net):
    """Its one optimizer is made in ``__init__``, and trains in every fit."""

    def __init__(self, kind: type[torch.optim.Optimizer] = SGD, **options: float) -> None:
        super().__init__()
        self.mine = kind(self.named_parameters(), **({"lr": 0.1, "momentum": 0.9} if kind is SGD else options))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.mine


def outlives(kind: type[torch.optim.Optimizer] = SGD, **options: float) -> Outlives:
    seed_everything(1, verbose=False)
    return Outlives(kind, **options)


@pytest.mark.parametrize("optimizer", [SGD, AdamW, Adagrad])
def test_an_optimizer_of_init_trains_in_two_fits_as_without_the_callback(optimizer):
    options = {} if optimizer is SGD else {"lr": 0.02}
    without = fitted(fitted(outlives(optimizer, **options)))
    with_it = fitted(fitted(outlives(optimizer, **options), plain()), plain())
    assert with_it.losses == without.losses
    assert not differing(copies(with_it), copies(without))


@pytest.mark.parametrize("callbacks", [lambda: (callback(),), lambda: ()], ids=["sparse", "dense"])
@MASKED
def test_an_optimizer_of_init_trains_in_the_fit_after_a_sparse_one(callbacks, options):
    module = fitted(outlives(), callback(**options))
    before, thetas = [id(p) for p in module.parameters()], copies(module)
    fitted(module, *callbacks())
    assert set(differing(copies(module), thetas)) >= {n for n, _ in module.named_parameters()} - {"conv.bias"}
    assert [id(p) for p in module.parameters()] == before
    module.mine.step()
    assert [id(p) for group in module.mine.param_groups for p in group["params"]] == before
    assert module.mine.param_groups[0]["param_names"] == [name for name, _ in module.named_parameters()]


def test_an_optimizer_goes_on_in_a_loop_of_ones_own_after_the_fit():
    module = fitted(Small(epochs=2), callback())
    optimizer = module.trainer.optimizers[0]
    factors = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(factors) == len(list(module.parameters())) + 3  # a checkpoint saved now can be resumed
    before = module.fc1.weight.detach().clone()
    module(torch.ones(2, 10)).sum().backward()
    optimizer.step()
    assert not torch.equal(module.fc1.weight, before)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in module.parameters()]
    module.trainer = None
    gone = weakref.ref(factors[0])
    del factors
    gc.collect()
    assert gone() is None


def test_momentum_of_plain_masked_weights_goes_along():
    module = outlives()
    fitted(module, callback(parametrization="plain"))
    of_factors = [p for p in module.mine.state if p.ndim == 1 and p.numel() > 100]
    kept = module.mine.state[of_factors[0]]["momentum_buffer"]
    module.mine.step()
    momentum = module.mine.state[module.fc1.weight]["momentum_buffer"]
    assert momentum.shape == module.fc1.weight.shape
    assert torch.equal(momentum[momentum != 0], kept[kept != 0])


def test_no_note_is_left_on_the_parameters():
    module = fitted(made(Penalty), callback())
    assert not sparse_weights(module)
    assert all(not vars(p) and p.grad_fn is None and p.is_leaf for p in module.parameters())


class Twice(Net):
    """A layer is used twice in a step, with a hook that is not linear."""

    def note(self) -> None:
        self.fc1.weight.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))

    def training_step(self, batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + F.cross_entropy(self(-batch[0]), batch[1])


def test_a_hook_of_a_layer_used_twice_gets_the_sum_where_a_weight_has_one_factor(recwarn):
    without = fitted(made(Twice))
    assert fitted(made(Twice), plain()).losses == without.losses
    fitted(made(Twice), callback(parametrization="plain"))
    fitted(made(Hooks), callback())
    assert not [w for w in recwarn if "hooks on its gradient" in str(w.message)]


def test_a_hook_of_a_layer_used_twice_is_told_where_a_weight_is_a_product():
    with pytest.warns(UserWarning, match=r"fc1\.weight has hooks on its gradient, and is used several times in a step"):
        fitted(made(Twice), callback())
