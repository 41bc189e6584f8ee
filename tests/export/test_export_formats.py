"""Every format, on real networks: what comes out computes what went in."""

import re
import warnings

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import LightningModule
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_signin import masks, merge_, sparsify
from lightning_signin.export import FORMATS, export, load_compressed
from lightning_signin.export.batches import check_outputs, example_batch
from tests.small import copies, differing

GRAPHS = [name for name, chosen in FORMATS.items() if chosen.runs]
FILES = [name for name, chosen in FORMATS.items() if not chosen.runs]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.recurrent = nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embed(x).relu())[0][:, -1])


class Tied(nn.Module):
    """Two linear layers with one sparse weight, and an embedding that is the output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.out = nn.Linear(32, 50, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(self.embed(x)).tanh()).mean(1))


def plain(name: str) -> tuple[nn.Module, Tensor]:
    """A network and a batch of three."""
    torch.manual_seed(0)
    if name == "resnet18":
        return torchvision.models.resnet18(num_classes=10), torch.randn(3, 3, 64, 64)
    if name == "deit_tiny":
        return timm.create_model("deit_tiny_patch16_224", num_classes=10, img_size=32), torch.randn(3, 3, 32, 32)
    return (Recurrent(), torch.randn(3, 6, 8)) if name == "lstm" else (Tied(), torch.randint(50, (3, 7)))


@pytest.fixture(scope="module", params=["resnet18", "deit_tiny", "lstm", "tied"])
def sparse(request) -> tuple[str, nn.Module, Tensor, Tensor]:
    """Name, module after `sparsify` and a step of batch statistics, batch, and outputs."""
    module, x = plain(request.param)
    exclude = ["out.weight"] if request.param == "tied" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsify(module, sparsity=0.9, exclude=exclude)
    with torch.no_grad():
        module(x)
        return request.param, module, x, module.eval()(x)


def loaded(path: str, to: str) -> dict[str, Tensor]:
    if to == "safetensors":
        return load_file(path)
    return load_compressed(path) if to == "compressed" else torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("to", FILES)
def test_weights_load_strictly_and_give_equal_outputs(tmp_path, sparse, to):
    name, module, x, expected = sparse
    before = copies(module)
    path = export(module, tmp_path / f"x{FORMATS[to].suffix}", to)
    assert masks(module)  # still sparse
    assert not differing(copies(module), before)
    again, _ = plain(name)
    again.load_state_dict(loaded(path, to), strict=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), expected)
    dense = sum(tensor.nbytes for tensor in before.values())
    assert to != "compressed" or name not in ("resnet18", "deit_tiny") or path.stat().st_size < dense / 3


def run_onnx(data: bytes, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("to", GRAPHS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_networks_give_the_same_outputs_for_any_batch(tmp_path, sparse, to):
    _, module, x, expected = sparse
    path = export(module, tmp_path / f"x{FORMATS[to].suffix}", to, example_input=x[:1])
    assert masks(module)
    run = (lambda x: run_onnx(path.read_bytes(), x)) if to == "onnx" else torch.export.load(path).module()
    for size in (1, 2, 3):
        with torch.no_grad():
            torch.testing.assert_close(run(x[:size]), expected[:size], rtol=1e-5, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


class Unequal(nn.Module):
    """Its outputs depend on the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * len(x)


def test_outputs_that_differ_are_an_error():
    inputs = example_batch(nn.Identity(), torch.ones(1, 2))
    check_outputs(Unequal(), lambda x: x * len(x), inputs, 1e-5, "test")
    with pytest.raises(ValueError, match=r"The test export differs from the module by 1\.0e\+00 with a batch of 3"):
        check_outputs(Unequal(), lambda x: x * 2, inputs, 1e-5, "test")
    with pytest.raises(ValueError, match="The test export has outputs of other shapes"):
        check_outputs(Unequal(), lambda x: x[:1], inputs, 1e-5, "test")


class Fixed(nn.Module):
    """Runs with two samples only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).view(2, 2)


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_network_that_fits_one_batch_only_is_refused(tmp_path, to):
    with pytest.raises(ValueError, match=r"with a batch of (any size|3)"):
        export(Fixed(), tmp_path / "x", to, example_input=torch.ones(1, 2))
    assert not list(tmp_path.iterdir())


class Module(LightningModule):
    def __init__(self, held: object) -> None:
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"to": "tflite"}, "`to` must be one of 'ckpt', 'safetensors', 'compressed', 'onnx', 'torch-export', 'sparse-"),
        ({"zstd": True}, "`zstd` needs the format 'compressed', not 'safetensors'"),
        ({"to": "onnx"}, "The network's input is not known. Pass `example_input`, or set `example_input_array`."),
        ({"to": "onnx", "example_input": {"x": 1}}, "must be a tensor or a tuple of tensors with the batch in dim"),
        ({"to": "onnx", "example_input": (torch.ones(2), torch.ones(3))}, "has several batch sizes: 2, 3."),
        ({"to": "ckpt", "source": Module(nn.Linear(2, 2))}, "Remove modules from the hyper-parameters: save_hyperp"),
        ({"to": "onnx", "source": "net.pt"}, "'onnx' holds the network, but net.pt only its weights. Pass `model`"),
        ({"to": "onnx", "source": "net.pt", "model": nn.Linear(2, 3)}, "net.pt does not match the model: it has"),
        ({"output": "nowhere/x"}, "There is no folder nowhere to write x into. Create it first."),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:Attribute 'held' is an instance of")
def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2).state_dict(), "net.pt")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(text)):
        export(**{"source": nn.Linear(2, 2), "output": "x", **arguments})
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


def test_larger_networks_than_onnx_can_hold_are_sent_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr("lightning_signin.export.onnx._LARGEST", 15)
    with pytest.raises(ValueError, match=r"one ONNX file holds at most 2 GiB\. Use the format 'torch-export'"):
        export(nn.Linear(2, 2), tmp_path / "x", "onnx", example_input=torch.ones(1, 2))


def test_merged_module_and_sparse_one_give_the_same(tmp_path):
    module = sparsify(nn.Linear(30, 30), sparsity=0.9)
    state = load_compressed(export(module, tmp_path / "x", "compressed"))
    assert not differing(load_compressed(export(merge_(module), tmp_path / "x", "compressed")), state)
