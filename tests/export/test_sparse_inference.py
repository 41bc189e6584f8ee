"""Models on their non-zeros: what they compute is what the dense model computes, and they are modules like others."""

import copy
import pickle
import warnings
from itertools import pairwise

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_signin import merge_, sparsify
from lightning_signin.export.plain_copy import plain_copy
from lightning_signin.export.sparse import SparseConv1x1, SparseLinear, inference_table, to_sparse_inference

RNG = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RNG)


@torch.no_grad()
def thin(layer: nn.Module, density: float = 0.1) -> nn.Module:
    """A layer with zeros, among them a whole row of outputs."""
    layer.weight.mul_(torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(1)) < density)
    layer.weight[1] = 0
    return layer.eval()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 32, batch_first=True)
        self.hidden = nn.Linear(32, 600)
        self.head = nn.Linear(600, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(self.lstm(x)[0]).relu())


class Tied(nn.Module):
    """Two linear layers share a weight, and one shares it with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(700, 512)
        self.first, self.second = nn.Linear(512, 512), nn.Linear(512, 512)
        self.second.weight = self.first.weight
        self.head = nn.Linear(512, 700, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(self.embedding(tokens)).relu()))


MODELS = {
    "resnet18": (lambda: torchvision.models.resnet18(), lambda: randn(2, 3, 64, 64), ["conv1.weight"]),
    "deit-tiny": (lambda: timm.create_model("deit_tiny_patch16_224", depth=3), lambda: randn(2, 3, 224, 224), None),
    "lstm": (Recurrent, lambda: randn(3, 7, 16), None),
    "tied": (Tied, lambda: torch.randint(700, (2, 9), generator=RNG), ["head.weight"]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40, 70), (300, 2100)])
def test_linear_computes_what_the_dense_layer_does(shape, bias, dtype):
    outputs, inputs = shape
    layer = thin(nn.Linear(inputs, outputs, bias=bias, dtype=dtype))
    sparse = SparseLinear.of(layer)
    assert torch.equal(sparse.weight, layer.weight)
    for size in [(inputs,), (0, inputs), (1, inputs), (16, inputs), (17, inputs), (300, inputs), (2, 3, 50, inputs)]:
        x = randn(*size).to(dtype)
        found = sparse(x)
        assert found.is_contiguous()
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_computes_what_the_dense_layer_does(stride, bias):
    layer = thin(nn.Conv2d(48, 30, 1, stride=stride, bias=bias))
    sparse = SparseConv1x1.of(layer)
    assert torch.equal(sparse.weight, layer.weight)
    for size in [(1, 48, 9, 8), (3, 48, 9, 8), (48, 5, 5)]:
        x = randn(*size)
        torch.testing.assert_close(sparse(x), layer(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sparse(x.transpose(-1, -2)), layer(x.transpose(-1, -2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("timed", [False, True], ids=["by rule", "timed"])
@pytest.mark.parametrize("name", MODELS)
def test_model_gives_the_merged_models_outputs_and_is_left_alone(name, timed):
    make, inputs, exclude = MODELS[name]
    torch.manual_seed(0)
    module, x = make().train(), inputs()
    sparsify(module, sparsity=0.9, exclude=exclude, distribution="erk")
    before = copy.deepcopy(module.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ResNet-18 by rule: one small linear layer
        sparse = to_sparse_inference(module, x if timed else None)
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    with torch.no_grad():
        expected = merge_(module).eval()(x)
        torch.testing.assert_close(sparse(x), expected, rtol=1e-5, atol=1e-5)
    assert not any(parameter is own for parameter in sparse.parameters() for own in module.parameters())


def chain(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [thin(nn.Linear(a, b)) for a, b in pairwise(widths)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())])


@pytest.fixture(scope="module")
def sparse_chain() -> nn.Module:
    return to_sparse_inference(chain(512, 512, 512))


def test_layers_are_exchanged_and_the_table_says_so(sparse_chain):
    assert [type(part) for part in sparse_chain[::2]] == [SparseLinear, SparseLinear]
    assert [line.split()[-1] for line in inference_table(sparse_chain).splitlines()] == ["runs", "sparse", "sparse"]
    timed = to_sparse_inference(chain(1024, 1024, 8), randn(4, 1024))
    lines = inference_table(timed).splitlines()
    assert lines[0].split() == ["layer", "shape", "sparsity", "dense", "ms", "sparse", "ms", "gain", "runs"]
    assert lines[-1].startswith("whole model")
    for line, layer in zip(lines[1:], timed[::2], strict=False):
        assert line.endswith("sparse") == isinstance(layer, SparseLinear)


def test_copies_and_state_dicts_compute_the_same(sparse_chain):
    x = randn(3, 512)
    expected = sparse_chain(x)
    for twin in (copy.deepcopy(sparse_chain), pickle.loads(pickle.dumps(sparse_chain))):
        assert torch.equal(twin(x), expected)
    state = {name: value.clone() for name, value in sparse_chain.state_dict().items()}
    assert set(state) == {f"{i}.{name}" for i in (0, 2) for name in ("starts", "columns", "values", "bias")}
    twin = copy.deepcopy(sparse_chain)
    for value in twin.state_dict().values():
        value.zero_()
    twin.load_state_dict(state, strict=True)
    assert torch.equal(twin(x), expected)
    twin.load_state_dict(state, strict=True, assign=True)
    assert torch.equal(twin(x), expected)


def test_weights_take_a_quarter_of_the_memory_at_90_percent(sparse_chain):
    dense = chain(512, 512, 512)
    held = sum(value.nbytes for value in sparse_chain.state_dict().values())
    assert held <= sum(value.nbytes for value in dense.state_dict().values()) / 4


def test_inputs_have_gradients(sparse_chain):
    dense = chain(512, 512, 512)
    for rows in (1, 5, 200):
        x = randn(rows, 512).requires_grad_()
        (expected,) = torch.autograd.grad(dense(x).square().sum(), x)
        (found,) = torch.autograd.grad(sparse_chain(x).square().sum(), x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_low_precision_inputs_and_modules(sparse_chain):
    x = randn(40, 512)
    expected = sparse_chain(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sparse_chain(x.bfloat16()).float(), expected, rtol=0.05, atol=0.05)
    low = copy.deepcopy(sparse_chain).bfloat16()
    for rows in (1, 40):
        torch.testing.assert_close(low(x[:rows].bfloat16()).float(), expected[:rows], rtol=0.05, atol=0.05)


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(SparseConv1x1.of(thin(nn.Conv2d(64, 96, 1, stride=2))), nn.ReLU())


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_exported_program_takes_any_batch(sparse_chain, kind, tmp_path):
    model, x = (sparse_chain, randn(3, 512)) if kind == "linear" else (convolutions(), randn(3, 64, 6, 6))
    model(x)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for rows in (2, 3, 150):
        more = randn(rows, *x.shape[1:])
        torch.testing.assert_close(again(more), model(more), rtol=1e-5, atol=1e-5)


def test_compiled_in_one_graph(sparse_chain):
    compiled = torch.compile(sparse_chain, fullgraph=True, backend="aot_eager")
    x = randn(5, 512)
    torch.testing.assert_close(compiled(x), sparse_chain(x), rtol=1e-5, atol=1e-5)


def test_shared_weights_stay_shared_and_that_of_an_embedding_dense():
    torch.manual_seed(0)
    module = sparsify(Tied(), sparsity=0.9, include=["first.weight", "second.weight"])
    sparse = to_sparse_inference(module)
    assert sparse.first.values is sparse.second.values
    assert type(sparse.head) is nn.Linear
    assert sparse.head.weight is sparse.embedding.weight
    assert copy.deepcopy(sparse).first.values.data_ptr() != sparse.first.values.data_ptr()


def test_layers_whose_weights_others_read_stay_as_they_are():
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(512, 4, 1024, batch_first=True)
    sparsify(module, sparsity=0.9)
    with pytest.warns(UserWarning, match="No layer runs on its non-zeros"):
        sparse = to_sparse_inference(module, randn(2, 5, 512))
    x = randn(2, 5, 512)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), merge_(module).eval()(x), rtol=1e-5, atol=1e-5)


def test_layer_by_itself_hooks_and_dense_models():
    assert isinstance(to_sparse_inference(thin(nn.Linear(512, 512))), SparseLinear)
    hooked = thin(nn.Linear(512, 512))
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    for module in (hooked, nn.Linear(512, 512), thin(nn.Linear(8, 8))):
        with pytest.warns(UserWarning, match="No layer runs on its non-zeros"):
            assert type(to_sparse_inference(module)) is nn.Linear


def test_wrong_input_and_a_model_without_a_table():
    for wrong in ("image", (), (randn(2, 512), 3)):
        with pytest.raises(ValueError, match="`example_input` must be a tensor"):
            to_sparse_inference(chain(512, 512), wrong)
    with pytest.raises(ValueError, match="Pass the one that `to_sparse_inference` returned"):
        inference_table(chain(512, 512))


def test_plain_copy_leaves_the_trainer_behind():
    module = chain(8, 8)
    trainer = object()
    object.__setattr__(module, "_trainer", trainer)
    assert vars(plain_copy(module))["_trainer"] is None
    assert vars(module)["_trainer"] is trainer
