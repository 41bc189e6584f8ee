"""The hooks of a user's module and callbacks: in them parameters are θ, to be read and written."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel

from lightning_signin import effective_weights, masks
from lightning_signin.callback.user_hooks import UserHook
from tests.small import Small, callback, copies, differing, loader, seeded, trainer

WEIGHTS = ["conv.weight", "fc1.weight", "fc2.weight"]
FORMS = pytest.mark.parametrize(
    "options", [{}, {"parametrization": "plain"}, {"storage": "dense"}], ids=["sign-in", "plain", "dense"]
)


def fit(module: LightningModule, *callbacks: Callback, epochs: int = 2, **options: object) -> LightningModule:
    trainer(callback(**options), *callbacks, epochs=epochs).fit(module, loader())
    return module


class Hooked(Small):
    """Calls the function that it was given, in one of its hooks."""

    def __init__(self, act, **options: float) -> None:
        super().__init__(epochs=2, **options)
        self.__dict__["act"] = act


class AtStart(Hooked):
    def on_train_start(self) -> None:
        self.act(self)


class AfterBatch(Hooked):
    @torch.no_grad()
    def on_train_batch_end(self, *_) -> None:
        self.act(self)


class AfterBackward(Hooked):
    def on_after_backward(self) -> None:
        self.act(self)


class BeforeZeroGrad(Hooked):
    @torch.no_grad()
    def on_before_zero_grad(self, *_) -> None:
        self.act(self)


def clip(module: nn.Module) -> None:  # of the critic of a WGAN
    for parameter in module.parameters():
        parameter.data.clamp_(-0.05, 0.05)


def clip_layers(module: nn.Module) -> None:
    for layer in (module.conv, module.fc1, module.fc2):
        layer.weight.data.clamp_(-0.05, 0.05)


def clip_vector(module: nn.Module) -> None:
    vector_to_parameters(parameters_to_vector(module.parameters()).clamp(-0.05, 0.05), module.parameters())


def clip_by_name(module: nn.Module) -> None:
    for name in WEIGHTS:
        module.get_parameter(name).copy_(module.get_parameter(name).clamp(-0.05, 0.05))


@pytest.mark.parametrize(
    ("hook", "act", "options"),
    [
        (AfterBatch, clip, {}),
        (AfterBatch, clip, {"parametrization": "plain"}),
        (AfterBatch, clip, {"storage": "dense"}),
        (AfterBatch, clip_layers, {}),
        (AfterBatch, clip_vector, {}),
        (AfterBatch, clip_by_name, {}),
        (BeforeZeroGrad, clip, {}),  # between the forward and the backward pass, as with a plain module
        (BeforeZeroGrad, clip_layers, {"storage": "dense"}),
    ],
)
def test_clipped_weights_are_clipped(hook, act, options):
    module = hook(act)
    module.act = lambda module: (
        act(module),
        largest.append(max(w.abs().max() for w in effective_weights(module).values())),
    )
    largest: list[Tensor] = []
    fit(module, epochs=1, **options)
    assert max(largest) <= 0.05 * (1 + 1e-6)
    assert min(largest) > 0.04  # θ itself is clipped, not its factors


def max_norm(module: nn.Module) -> None:
    weight = module.fc1.weight
    weight.mul_((0.3 / weight.norm(dim=1, keepdim=True)).clamp(max=1))


def unit_rows(module: nn.Module) -> None:
    module.fc1.weight.copy_(0.3 * F.normalize(module.fc1.weight))


def spectral(module: nn.Module) -> None:
    largest = torch.linalg.matrix_norm(module.fc1.weight, 2)
    module.fc1.weight.data.copy_(module.fc1.weight * (0.5 / largest).clamp(max=1))


@pytest.mark.parametrize(
    ("act", "measure", "most"),
    [
        (max_norm, lambda w: w.norm(dim=1), 0.3),
        (unit_rows, lambda w: w.norm(dim=1), 0.3),
        (spectral, lambda w: torch.linalg.svdvals(w), 0.5),
    ],
)
def test_norms_are_kept(act, measure, most):
    measured = []
    fit(
        AfterBatch(
            lambda module: (act(module), measured.append(measure(effective_weights(module)["fc1.weight"]).max()))
        )
    )
    assert torch.stack(measured).max() <= most * (1 + 1e-5)
    assert torch.stack(measured).min() > most / 2


def test_weights_are_started_in_a_hook():
    module, kept = AtStart(lambda module: nn.init.constant_(module.fc1.weight, 0.05), lr=0.0), {}

    class Kept(Callback):
        def on_train_start(self, trainer, module):
            kept.update(masks(module))

    with pytest.warns(UserWarning, match="written into fc1.weight off its mask"):
        fit(module, Kept())
    torch.testing.assert_close(module.fc1.weight, 0.05 * kept["fc1.weight"])


class Shadow:
    """An exponential average by name, and the same of `effective_weights`, the slow way."""

    def __init__(self, module: nn.Module) -> None:
        self.of_user = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        self.expected = {}

    def __call__(self, module: nn.Module) -> None:
        for name, theta in effective_weights(module).items():
            self.expected.setdefault(name, self.of_user[name].detach().clone()).lerp_(theta, 0.1)
        self.follow(module)

    def follow(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            self.of_user[name].lerp_(parameter, 0.1)


class Following(Shadow):
    """The same in a network that follows `parameters()`, in their order."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.target = Small()
        self.target.load_state_dict(module.state_dict())

        self.of_user = dict(self.target.named_parameters())

    def follow(self, module: nn.Module) -> None:
        for own, followed in zip(self.target.parameters(), module.parameters(), strict=True):
            own.data.mul_(0.9).add_(followed.data, alpha=0.1)


@pytest.mark.parametrize(
    ("hook", "average", "options"),
    [
        (AfterBatch, Shadow, {}),
        (AfterBatch, Following, {"parametrization": "plain"}),
        (BeforeZeroGrad, Following, {}),
        (BeforeZeroGrad, Shadow, {"storage": "dense"}),
    ],
)
def test_average_of_ones_own_is_that_of_theta(hook, average, options):
    module = hook(None)
    module.act = average(module)
    fit(module, **options)
    for name, expected in module.act.expected.items():
        torch.testing.assert_close(module.act.of_user[name].detach(), expected)


class Mean:
    """torch's average, made when training has started."""

    def __init__(self) -> None:
        self.total, self.steps, self.model = 0, 0, None

    def __call__(self, module: nn.Module) -> None:
        if self.model is None:
            self.model = AveragedModel(module.fc1)
        self.model.update_parameters(module.fc1)
        self.total, self.steps = self.total + effective_weights(module)["fc1.weight"], self.steps + 1


@FORMS
def test_averaged_model_made_in_the_fit_averages_theta(options):
    mean = Mean()
    fit(AfterBatch(mean), **options)
    assert type(mean.model.module) is nn.Linear
    torch.testing.assert_close(mean.model.module.weight.detach(), mean.total / mean.steps)
    mean.model.load_state_dict(pickle.loads(pickle.dumps(mean.model)).state_dict())


class Copied(Small):
    """A copy that is made when the fit starts, and takes part in training."""

    def make(self) -> None:
        self.target = copy.deepcopy(self.fc1).requires_grad_(False)
        self.start = effective_weights(self)["fc1.weight"]

    def training_step(self, batch, batch_idx):
        hidden = self.norm(self.conv(batch[0].unsqueeze(1))).relu().flatten(1)
        return super().training_step(batch, batch_idx) + (self.fc1(hidden) - self.target(hidden)).square().mean()


class CopiedAtTrainStart(Copied):
    def on_train_start(self) -> None:
        self.make()


class CopiedAtFitStart(Copied):
    def on_fit_start(self) -> None:
        self.make()


@pytest.mark.parametrize("kind", [CopiedAtTrainStart, CopiedAtFitStart])
def test_copy_made_in_the_fit_is_plain(kind):
    module = fit(kind(epochs=2))
    assert type(module.target) is nn.Linear
    assert torch.equal(module.target.weight, module.start)
    assert not torch.equal(module.fc1.weight, module.start)


class TrainableOnly(Small):
    def on_save_checkpoint(self, checkpoint) -> None:
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {n: v for n, v in checkpoint["state_dict"].items() if n in names}


class FromParameters(Small):
    def on_save_checkpoint(self, checkpoint) -> None:
        checkpoint["state_dict"] = {n: p.data.cpu() for n, p in self.named_parameters() if p.requires_grad}


class InStateDict(Small):
    def state_dict(self, *args, **kwargs):
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}


class Notes(Callback):
    def on_train_epoch_end(self, trainer, module):
        self.expected = effective_weights(module)


class Saves(Notes):
    def __init__(self, folder) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer, module):
        super().on_train_epoch_end(trainer, module)
        trainer.save_checkpoint(self.folder / "kept.ckpt")


@pytest.mark.parametrize("by", ["a hook", "ModelCheckpoint"])
@pytest.mark.parametrize("kind", [TrainableOnly, FromParameters, InStateDict])
def test_checkpoint_of_trainable_parameters_has_the_sparse_ones(tmp_path, kind, by):
    """Whether it is saved within a hook, in which parameters are shown already, or by Lightning's own callback."""
    module, saves = kind(epochs=2), Saves(tmp_path) if by == "a hook" else Notes()
    more = [] if by == "a hook" else [ModelCheckpoint(tmp_path, "kept", save_on_train_epoch_end=True)]
    module.conv.bias.requires_grad = False
    trainer(callback(), saves, *more, epochs=2, enable_checkpointing=bool(more)).fit(module, loader())
    saved = torch.load(tmp_path / "kept.ckpt", weights_only=True)["state_dict"]
    assert list(saved) == [name for name, _ in Small().named_parameters() if name != "conv.bias"]
    assert all(torch.equal(saved[name], theta) for name, theta in saves.expected.items())


class Outputs(AfterBackward):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.unsqueeze(1))).relu().flatten(1)
        self.hidden = self.fc1(x).relu()
        self.logits = self.fc2(self.hidden)
        self.logits.retain_grad()
        return self.logits


@FORMS
def test_gradient_in_a_hook_is_that_of_theta(options):
    def compare(module: nn.Module) -> None:
        found = module.fc2.weight.grad
        torch.testing.assert_close(found, module.logits.grad.T @ module.hidden * masks(module)["fc2.weight"])
        norms.append(found.norm())

    norms: list[Tensor] = []
    fit(Outputs(compare), **options)
    assert len(norms) == 20
    assert all(norms)


def test_weight_that_is_frozen_late_stays():
    seen = []

    class Freezes(Small):
        def on_train_epoch_start(self) -> None:
            self.fc1.weight.requires_grad = self.current_epoch < 1

        def on_train_epoch_end(self) -> None:
            seen.append(
                (self.fc1.weight.requires_grad, self.fc1.weight.detach().clone(), self.fc2.weight.detach().clone())
            )

    fit(Freezes(epochs=3), epochs=3)
    assert [trained for trained, *_ in seen] == [True, False, False]
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[0][2], seen[1][2])


def test_callback_of_the_user_sees_plain_parameters():
    class Looks(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            self.names = [name for name, _ in module.named_parameters()]
            module.fc1.weight.data.clamp_(-0.05, 0.05)

    looks = Looks()
    module = fit(seeded(epochs=2), looks)
    assert looks.names == [name for name, _ in Small().named_parameters()]
    assert module.fc1.weight.abs().max() <= 0.05 * (1 + 1e-6)
    assert "on_train_batch_end" not in vars(looks)


def test_looking_changes_no_bit_and_opens_only_what_is_asked_for():
    opened = []

    def look(module: nn.Module) -> None:
        assert type(module.fc1) is not nn.Linear
        assert not module.fc1.weight.isnan().any()
        opened.append([type(layer) is nn.Linear for layer in (module.fc1, module.fc2)])

    torch.manual_seed(1)
    looked = AfterBatch(look)
    torch.manual_seed(1)
    plain = Small(epochs=2)
    for module in (looked, plain):
        torch.manual_seed(2)
        fit(module)
    assert opened == [[True, False]] * 20
    assert not differing(copies(looked), copies(plain))


def test_verbs_work_in_a_hook_that_has_read_parameters():
    def act(module: nn.Module) -> None:
        module.fc1.weight.data.zero_()
        assert list(masks(module)) == WEIGHTS
        assert not effective_weights(module)["fc1.weight"].any()
        assert not module.fc1.weight.any()

    fit(AtStart(act))


def test_optimizer_made_in_a_hook_trains_the_factors():
    def act(module: nn.Module) -> None:
        before = module.fc1.weight.clone()
        optimizer = torch.optim.SGD(module.fc1.parameters(), lr=0.1)
        module.fc1.weight.grad = torch.ones_like(module.fc1.weight)
        optimizer.step()
        on_mask = masks(module)["fc1.weight"]
        assert not torch.equal(module.fc1.weight, before)
        assert (module.fc1.weight <= before)[on_mask].all()

    fit(AtStart(act))


class StepsItself(Small):
    """The training step and the backward pass happen inside ``optimizer_step``."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure) -> None:
        self.before = self.fc1.weight.detach().clone()
        optimizer.step(closure=optimizer_closure)
        with torch.no_grad():
            self.fc1.weight.clamp_(-0.05, 0.05)


class ClipsGradients(Small):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1e-8)


def test_weights_are_clipped_after_the_step_of_ones_own():
    module = fit(StepsItself(epochs=2))
    assert module.fc1.weight.abs().max() <= 0.05 * (1 + 1e-6)
    assert not torch.equal(module.fc1.weight, module.before)


def test_gradients_are_clipped_in_theta():
    module = ClipsGradients(epochs=2)
    module.act = None
    before = {}

    class Notes(Callback):
        def on_train_start(self, trainer, module):
            before.update(effective_weights(module))

    fit(module, Notes())
    for name, theta in before.items():
        torch.testing.assert_close(module.get_parameter(name).detach(), theta, atol=1e-6, rtol=0)


def test_hook_of_a_copy_is_its_own():
    module = Small()
    vars(module)["training_step"] = UserHook("training_step", module.training_step, nullcontext)
    twins = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    assert [twin.training_step.__self__ is twin for twin in twins] == [True, True]
