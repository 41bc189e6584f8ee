"""`torch.func`, tracing, copies and pickles within a fit: as they are with the plain module."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.func import functional_call, grad, hessian, vmap

from lightning_signin import SignInCallback, merge_
from lightning_signin.core.weights import sparse_weights
from tests.small import Small, copies, data, loader, seeded, trainer

STORAGES = pytest.mark.parametrize("storage", ["compact", "dense"])


def fit(module: Small, storage: str = "compact", parametrization: str = "plain", **options: Any) -> None:
    every = {"rescale_every_n_epochs": 1} if parametrization == "sign-in" else {}
    sign_in = SignInCallback(sparsity=0.8, storage=storage, parametrization=parametrization, **every)
    torch.manual_seed(1)  # of the order of the data
    trainer(sign_in, epochs=2, **options).fit(module, loader())


class Physics(Small):
    """Minimizes the Laplacian of its output."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.eval()
        laplacians = vmap(hessian(lambda x: self(x[None]).square().sum()))(batch[0])
        return laplacians.diagonal(dim1=1, dim2=2).square().mean() + self(batch[0]).sub(1).square().mean()


class PerSample(Small):
    """Steps along the mean of gradients of norm 1, one for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.eval()
        values = {name: value.detach() for name, value in self.named_parameters()}
        each = vmap(grad(self.loss), (None, 0, 0))(values, *batch)
        for name, value in self.named_parameters():
            norms = each[name].flatten(1).norm(dim=1).clamp(min=1e-3)
            value.grad = (each[name] / norms.view(-1, *[1] * value.ndim)).mean(0)
        self.optimizers().step()

    def loss(self, values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(functional_call(self, values, (x[None],)), y[None])


@pytest.mark.parametrize("kind", [Physics, PerSample])
@pytest.mark.parametrize("parametrization", ["plain", "sign-in"])
def test_steps_with_transforms_are_equal_in_both_storages(kind, parametrization):
    trained = []
    for storage in ("compact", "dense"):
        torch.manual_seed(0)
        trained.append(module := kind())
        fit(module, storage, parametrization)
    torch.testing.assert_close(copies(trained[0]), copies(trained[1]), rtol=1e-4, atol=1e-5)
    assert (trained[0].fc1.weight != 0).float().mean() < 0.5


class Teacher(Small):
    """Is taught by an average of its own state, which it calls by plain names."""

    def on_fit_start(self) -> None:
        self.average = {name: value.clone().float() for name, value in self.state_dict().items()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        before = [parameter.detach().clone() for parameter in self.parameters()]
        with torch.no_grad():
            given = dict(self.average)
            target = functional_call(self, given, (batch[0],))
        assert all(torch.equal(a, b) for a, b in zip(before, self.parameters(), strict=True))
        assert all(given[name] is value for name, value in self.average.items() if "num_batches" not in name)
        return (self(batch[0]) - target - 1).square().mean()

    def on_train_batch_end(self, *_: Any) -> None:
        for name, value in self.state_dict().items():
            self.average[name] = self.average[name].lerp(value.float(), 0.1)


@STORAGES
def test_a_teacher_called_by_plain_names_is_that_of_the_plain_fit(storage):
    torch.manual_seed(0)
    module = Teacher()
    module.dropout.p = 0.0
    dense = copy.deepcopy(module)
    for each, callbacks in (
        (module, [SignInCallback(sparsity=0.0, parametrization="plain", storage=storage)]),
        (dense, []),
    ):
        torch.manual_seed(1)
        trainer(*callbacks, epochs=2).fit(each, loader())
    torch.testing.assert_close(copies(module), copies(dense))
    sparse = Teacher()
    fit(sparse, storage, "sign-in")
    assert set(sparse.average) == set(sparse.state_dict())


class Copied(Small):
    """Copies and pickles itself in the middle of an epoch, in the training step and in a hook."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == 5:
            torch.save(self.fc1, file := io.BytesIO())
            file.seek(0)
            x = torch.ones(2, 48)
            for twin in (
                copy.deepcopy(self.fc1),
                pickle.loads(pickle.dumps(self.fc1)),
                torch.load(file, weights_only=False),
            ):
                assert torch.equal(twin.weight != 0, sparse_weights(self)["fc1.weight"].storage.mask)
                assert torch.equal(twin(x), self.fc1(x))
                twin(x).sum().backward()
                assert torch.equal(merge_(twin)(x), self.fc1(x))
        return super().training_step(batch, batch_idx)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 5:
            x, own = torch.ones(2, 48), copies(self.fc1)
            twin = copy.deepcopy(self.fc1)
            assert type(twin) is torch.nn.Linear
            assert all(torch.equal(value, own[name]) for name, value in twin.state_dict().items())
            assert torch.equal(pickle.loads(pickle.dumps(self.fc1))(x), twin(x))


@STORAGES
def test_copies_and_pickles_in_a_fit_change_nothing(storage):
    torch.manual_seed(0)
    copied = Copied()
    plain = Small()
    plain.load_state_dict(copied.state_dict())
    for module in (copied, plain):
        module.dropout.p = 0.0
        fit(module, storage, "sign-in")
    assert copied.losses == plain.losses


@STORAGES
def test_a_logger_draws_the_graph(storage, tmp_path):
    module = seeded()
    module.example_input_array = torch.randn(2, 10)
    fit(module, storage, "sign-in", logger=TensorBoardLogger(tmp_path, log_graph=True))
    (events,) = tmp_path.rglob("events.out.tfevents*")
    assert b"aten::linear" in events.read_bytes()


class Traced(Small):
    """Exports itself in a hook, as deployments in the middle of a fit do."""

    def on_train_epoch_end(self) -> None:
        x = data().tensors[0][:4]
        self.eval()
        self.expected = self(x)
        for made in (torch.jit.trace(self, x), torch.export.export(self, (x,)).module()):
            torch.testing.assert_close(made(x), self.expected)
        self.train()


def test_a_module_is_traced_and_exported_in_a_hook():
    fit(Traced(), "compact", "sign-in")
