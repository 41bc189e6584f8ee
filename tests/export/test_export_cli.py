"""``lightning-signin export`` as a user runs it, on a tiny run."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_signin.export import load_compressed
from lightning_signin.recipes.models import MLP, Classifier
from lightning_signin.weightfiles.saved import read_weights
from tests.commands import main

CONFIG = ["--config", "mnist1d", "--data.batch_size=100"]
SILENT = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with one checkpoint of its middle."""
    folder = tmp_path_factory.mktemp("mnist1d")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        main(["fit", "--config", "mnist1d", *options])
    (last,) = folder.rglob("last.ckpt")
    last.rename(folder / "last.ckpt")
    return folder


def network(path) -> tuple[Classifier, dict]:
    state = read_weights(path).tensors
    plain = Classifier(MLP([40, 300, 300, 10]))
    plain.load_state_dict(state, strict=True)
    return plain.eval(), state


@pytest.fixture
def checkpoint(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes())
    return "last.ckpt"


def equal(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@SILENT
def test_default_is_safetensors_beside_the_checkpoint(checkpoint, capsys):
    main(["export", checkpoint])
    _, state = network(checkpoint)
    assert equal(load_file("last.safetensors"), state)
    assert re.fullmatch(r"last\.safetensors  \(0\.42 MB; dense weights 0\.42 MB\)\n", capsys.readouterr().out)


@SILENT
@pytest.mark.parametrize("zstd", [False, True])
def test_compressed_is_smaller_and_can_be_inspected(checkpoint, capsys, zstd):
    main(["export", checkpoint, "--to", "compressed", *(["--zstd"] if zstd else [])])
    path = "last.compressed.safetensors" + (".zst" if zstd else "")
    assert equal(load_compressed(path), network(checkpoint)[1])
    size, dense = map(float, re.search(r"\((\S+) MB; dense weights (\S+) MB\)", capsys.readouterr().out).groups())
    assert size < dense / 5
    main(["inspect", path])
    table = capsys.readouterr().out
    main(["inspect", checkpoint])
    # The totals, with sign flips; a file's rows may be in another order.
    assert table.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]
    main(["inspect", path, *CONFIG])
    assert "FLOPs" in capsys.readouterr().out


@SILENT
def test_merged_checkpoint_is_plain_and_small(checkpoint, capsys):
    main(["export", checkpoint, "--to", "ckpt"])
    saved = torch.load("last.merged.ckpt", weights_only=True)
    assert "callbacks" not in saved
    assert equal(saved["state_dict"], network(checkpoint)[1])
    assert capsys.readouterr().out.startswith("last.merged.ckpt  (0.4")


@SILENT
@pytest.mark.parametrize("to", ["onnx", "torch-export", "sparse-torch-export"])
def test_networks_are_made_from_the_configuration(checkpoint, capsys, to):
    main(["export", checkpoint, "--to", to, "--output", "out", *CONFIG])
    x = torch.randn(5, 40)
    with torch.no_grad():
        expected = network(checkpoint)[0](x)
        if to == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession("out", providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        else:
            found = torch.export.load("out").module()(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert capsys.readouterr().out.splitlines()[-1].startswith("out  (0.")


@SILENT
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--to", "onnx"], "'onnx' holds the network, but last.ckpt only its weights. Pass `model` (--config)"),
        (["--to", "ckpt", "--zstd"], "`zstd` needs the format 'compressed', not 'ckpt'"),
        (["--output", "nowhere/x"], "There is no folder nowhere to write x into"),
        (
            ["--to", "onnx", *CONFIG, "--model.init_args.network.init_args.widths=[40,10]"],
            "does not match the model: it",
        ),
    ],
    ids=["no config", "zstd", "no folder", "another model"],
)
def test_what_does_not_fit_is_one_message_and_status_2(checkpoint, capsys, options, text):
    with pytest.raises(SystemExit) as stop:
        main(["export", checkpoint, *options])
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_file_is_not_written_over_itself(checkpoint, capsys):
    main(["export", checkpoint])
    with pytest.raises(SystemExit):
        main(["export", "last.safetensors"])
    assert "last.safetensors already has the format 'safetensors'. Name another" in capsys.readouterr().err


@SILENT
@pytest.mark.parametrize(
    ("missing", "options", "hint"),
    [
        ("onnx", ["--to", "onnx", *CONFIG], "needs onnx: pip install 'lightning-signin[onnx]'"),
        ("onnxruntime", ["--to", "onnx", *CONFIG], "needs onnxruntime: pip install 'lightning-signin[onnx]'"),
        ("zstandard", ["--to", "compressed", "--zstd"], "needs zstandard: pip install 'lightning-signin[zstd]'"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_missing_package_is_named_with_its_extra(checkpoint, capsys, monkeypatch, missing, options, hint):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, "compression", None)
    with pytest.raises(SystemExit):
        main(["export", checkpoint, *options])
    assert hint in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == [checkpoint]
