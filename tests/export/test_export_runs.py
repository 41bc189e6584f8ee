"""Exports of runs: from the middle of a fit, from its checkpoints, and from behind URLs."""

import io

import fsspec
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_signin.export import FORMATS, export
from lightning_signin.export.formats import output_beside
from lightning_signin.weightfiles.saved import read_weights
from tests.small import Small, callback, copies, data, differing, loader, trainer

FILES = [name for name, chosen in FORMATS.items() if not chosen.runs]


def same(path, expected: dict[str, Tensor]) -> bool:
    """Whether a file has the same state dict, in any order."""
    return not differing(dict(sorted(read_weights(path).tensors.items())), dict(sorted(expected.items())))


class InTheMiddle(Small):
    """Exports itself in the middle of its fit."""

    def on_train_batch_end(self, *_: object) -> None:
        if self.global_step == 15:
            self.expected = copies(self)
            for to in FILES:
                export(self, f"memory://middle{FORMATS[to].suffix}", to)
            self.eval()
            self.outputs = self(torch.ones(3, 10)).detach()
            export(self, "memory://middle.pt2", "torch-export", example_input=torch.ones(1, 10))
            self.train()


def in_memory(path: str) -> io.BytesIO:
    with fsspec.open(path, "rb") as file:
        return io.BytesIO(file.read())


def test_live_module_in_the_middle_of_a_fit_is_exported_and_trains_on(tmp_path):
    torch.manual_seed(1)
    model = InTheMiddle()
    trainer(callback(), epochs=2).fit(model, loader())
    for to in FILES:
        assert same(f"memory://middle{FORMATS[to].suffix}", model.expected)
    program = torch.export.load(in_memory("memory://middle.pt2")).module()
    torch.testing.assert_close(program(torch.ones(3, 10)), model.outputs)
    assert torch.load(in_memory("memory://middle.merged.ckpt"), weights_only=True)["global_step"] == 15


class Configurable(Small):
    """With hyper-parameters, and an entry of its own in checkpoints."""

    def __init__(self, width: int, note: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.fc1 = nn.Linear(48, width)
        self.fc2 = nn.Linear(width, 3)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["vocabulary"] = ["a", "b"]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.vocabulary = checkpoint["vocabulary"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    model = Configurable(20, note="x")
    fit = trainer(callback(), epochs=2, enable_checkpointing=True, default_root_dir=folder)
    fit.checkpoint_callback.save_top_k = -1
    fit.fit(model, loader())
    fit.save_checkpoint(folder / "merged.ckpt")
    (middle,) = folder.rglob("epoch=1-*.ckpt")
    return fit, model, {"middle": middle, "merged": folder / "merged.ckpt", "live": model}


@pytest.mark.parametrize("kind", ["middle", "merged", "live"])
def test_exported_checkpoint_is_a_plain_one_for_lightning(tmp_path, fitted, kind):
    fit, model, sources = fitted
    path = export(sources[kind], tmp_path / "x.ckpt", "ckpt")
    saved = torch.load(path, weights_only=True)
    expected = {"epoch", "global_step", "pytorch-lightning_version", "state_dict", "vocabulary"}
    assert saved.keys() == expected | {"hparams_name", "hyper_parameters"}
    assert (saved["global_step"], saved["hyper_parameters"]) == (20, {"width": 20, "note": "x"})
    again = Configurable.load_from_checkpoint(path)
    assert not differing(copies(again), copies(model))
    assert again.vocabulary == ["a", "b"]
    batches = DataLoader(data(), 8)
    before = fit.test(model, batches, verbose=False)
    again = Configurable(20)
    assert trainer().test(again, batches, ckpt_path=path, weights_only=True, verbose=False) == before
    assert path.stat().st_size < sources["middle"].stat().st_size


@pytest.mark.parametrize("to", ["safetensors", "compressed", "torch-export"])
@pytest.mark.parametrize("kind", ["middle", "merged"])
def test_checkpoints_of_any_moment_are_exported(tmp_path, fitted, to, kind):
    _, model, sources = fitted
    options = {"model": Configurable(20), "example_input": torch.ones(1, 10)} if FORMATS[to].runs else {}
    path = export(sources[kind], tmp_path / f"x{FORMATS[to].suffix}", to, **options)
    if FORMATS[to].runs:
        with torch.no_grad():
            torch.testing.assert_close(
                torch.export.load(path).module()(torch.ones(5, 10)), model.eval()(torch.ones(5, 10))
            )
    else:
        weights = read_weights(path)
        assert same(path, copies(model))
        assert weights.kept == read_weights(sources["middle"]).kept
        assert sum(weights.flips.values()) == sum(read_weights(sources["middle"]).flips.values()) > 0


def test_urls_are_read_and_written(tmp_path, fitted):
    _, model, sources = fitted
    with fsspec.open("memory://runs/middle.ckpt", "wb") as file:
        file.write(sources["middle"].read_bytes())
    for name in FILES:
        export("memory://runs/middle.ckpt", output_beside("memory://runs/middle.ckpt", name), name)
        assert same(output_beside("memory://runs/middle.ckpt", name), copies(model))
    assert not any("part" in path for path in fsspec.filesystem("memory").find("/runs"))
