"""What torch or the user's code raises while masks are scored: one line that names `mask`, the cause and a way out."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import sparsify
from lightning_signin.errors import SignInError
from lightning_signin.masks import GraSP, TrainingData
from tests.score_references import Recurrent, classify, labelled, scored
from tests.small import Small, callback, loader, trainer


class Fails(nn.Linear):
    """A network that raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__(4, 3)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


ERRORS = [
    (AssertionError("boxes should have a size"), "AssertionError: boxes should have a size"),
    (AssertionError(), "AssertionError"),
    (KeyError("labels"), "KeyError: 'labels'"),
    (ValueError("bad value.\nin three\nlines"), "ValueError: bad value"),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "RuntimeError: mat1 and mat2 shapes cannot be multi.*"),
    (NotImplementedError("later"), "NotImplementedError: later"),
]
EVERY_ERROR = pytest.mark.parametrize(("error", "shown"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])


@EVERY_ERROR
@pytest.mark.parametrize("name", ["snip", "force", "grasp", "prospr"])
def test_errors_of_the_users_model_are_put_into_words(name, error, shown):
    data = TrainingData(classify, [(torch.ones(2, 4), torch.tensor([0, 1]))])
    with pytest.raises(
        SignInError, match=rf"^mask='{name}' could not be computed: {shown}\. Check what .* or choose a"
    ) as e:
        sparsify(Fails(error), mask=name, data=data)
    assert (type(e.value.__cause__), e.value.__cause__.args) == (type(error), error.args)
    assert "\n" not in str(e.value)


@EVERY_ERROR
def test_errors_of_a_users_score_are_put_into_words(error, shown):
    def own(task):
        raise error

    with pytest.raises(SignInError, match=rf"^mask='tests\S*own' could not be computed: {shown}\. Check what"):
        sparsify(nn.Linear(4, 3), mask=own)


@EVERY_ERROR
def test_errors_of_a_lightning_step_are_put_into_words(error, shown):
    class Step(Small):
        def training_step(self, batch, batch_idx):
            raise error

    text = (
        r"^mask='snip' could not be computed: RuntimeError: The training step failed during scoring, with "
        rf"{shown}\. It runs on a copy of the module before `on_fit_start`: what it needs must exist after `setup`"
    )
    with pytest.raises(SignInError, match=text):
        trainer(callback(mask="snip")).fit(Step(), loader())


@pytest.mark.parametrize("name", ["snip", "grasp", "prospr", "synflow"])
def test_own_words_are_not_put_into_words_again(name):
    with pytest.raises(SignInError, match=r"^(?!.*could not be computed).* training batches"):
        sparsify(nn.Linear(4, 3), mask=name, data=TrainingData(classify, []))


def test_warnings_as_errors_stay_what_they_are():
    def warns(task):
        raise UserWarning("as an error")

    with pytest.raises(UserWarning, match=r"^as an error$"):
        sparsify(nn.Linear(4, 3), mask=warns)


class Once(torch.autograd.Function):
    """Differentiable once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


class Applies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


ONCE = {
    "hardsigmoid": nn.Hardsigmoid,
    "once_differentiable": Applies,
    "compiled": lambda: torch.compile(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), backend="aot_eager"),
}


@pytest.mark.parametrize("name", ["grasp", "prospr"])
@pytest.mark.parametrize("kind", ONCE)
def test_functions_without_second_derivatives_are_named(kind, name):
    net = nn.Sequential(nn.Linear(8, 8), ONCE[kind](), nn.Linear(8, 3))
    data = TrainingData(classify, [(x.float(), y) for x, y in labelled((8,), 4)])
    text = (
        rf"^mask='{name}' needs second derivatives of the training loss, and a function of the model has none \(.+\)\. "
    )
    with pytest.raises(
        SignInError, match=text + "Choose a mask that needs first derivatives only, e.g. 'snip'"
    ) as caught:
        sparsify(net, mask=name, data=data, exclude=["1.*"] if kind == "compiled" else None)
    assert isinstance(caught.value.__cause__, RuntimeError) == (kind != "once_differentiable")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # in which oneDNN runs LSTMs
def test_recurrences_have_second_derivatives_in_low_precision(kind, dtype):
    net = Recurrent().double()
    net.lstm = kind(3, 4, batch_first=True).double()
    net.lstm = nn.Sequential(nn.Linear(3, 3).double(), net.lstm)

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(module.head(module.lstm(batch[0])[0][:, -1]), batch[1])

    batches = labelled((5, 3), 1)
    exact, _ = scored(net, GraSP(), TrainingData(loss, batches))
    found, _ = scored(net.to(dtype), GraSP(), TrainingData(loss, [(x.to(dtype), y) for x, y in batches]))
    assert "lstm.0.weight" in found
    for name, score in found.items():
        error = (score.double() - exact[name]).norm() / exact[name].norm()
        assert error < (1e-4 if dtype == torch.float32 else 0.3), name
    assert torch._C._get_mkldnn_enabled()
