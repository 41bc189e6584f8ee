"""How a fit starts, written in YAML and on the command line."""

import pytest
import torch

from lightning_signin import SignInCallback
from lightning_signin.cli.main import main
from lightning_signin.lightning_cli.fit import SignInCLI
from lightning_signin.masks import SNIP, NMCap, SynFlow
from lightning_signin.weightfiles.saved import masks_from_file

CONFIG = """\
seed_everything: 1
trainer:
  max_epochs: 1
  accelerator: cpu
  limit_train_batches: 2
  limit_val_batches: 1
  limit_test_batches: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: runs}}
  callbacks:
    - class_path: lightning_signin.SignInCallback
      init_args: {%s}
model:
  class_path: lightning_signin.recipes.models.Classifier
  init_args: {network: {class_path: lightning_signin.recipes.models.ResNet20}, lr: 0.1}
data: {class_path: lightning_signin.recipes.data.Digits, init_args: {batch_size: 16}}
"""
ON_LINE = "--trainer.callbacks.init_args."


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(line: str):
        (tmp_path / "config.yaml").write_text(CONFIG % line)
        return str(tmp_path / "config.yaml")

    return write


def parsed(arguments: list[str]) -> SignInCallback:
    cli = SignInCLI(args=arguments, run=False)
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, SignInCallback))


SNIP_2 = "{class_path: lightning_signin.masks.SNIP, init_args: {num_batches: 2}}"


@pytest.mark.parametrize(
    ("line", "options", "expected"),
    [
        ("mask: snip", [], {"mask": "snip", "distribution": None, "sparsity": None}),
        (f"mask: {SNIP_2}", [], {"mask": SNIP(2)}),
        ("mask: lightning_signin.masks.SynFlow", [], {"mask": "lightning_signin.masks.SynFlow"}),
        ("mask: tests.callback.test_start.counted", [], {"mask": "tests.callback.test_start.counted"}),
        ("mask: snip", [f"{ON_LINE}mask=force"], {"mask": "force"}),
        (
            "mask: lightning_signin.masks.SynFlow",
            [f"{ON_LINE}mask=lightning_signin.masks.SynFlow", f"{ON_LINE}mask.init_args.iterations=3"],
            {"mask": SynFlow(3)},
        ),
        ('distribution: {"*fc*": 0.5, "*": 0.9}', [], {"distribution": {"*fc*": 0.5, "*": 0.9}, "sparsity": None}),
        ("", [f'{ON_LINE}distribution={{"*": 0.5}}'], {"distribution": {"*": 0.5}}),
        ("sparsity: 0.8, distribution: erk", [f"{ON_LINE}sparsity=0.5"], {"sparsity": 0.5, "distribution": "erk"}),
        ("structure: 2:4-cap", [], {"structure": "2:4-cap"}),
        ("structure: 2:4", [], {"structure": "2:4"}),
        ("structure: '2:4'", [], {"structure": "2:4"}),
        ("structure: 16:32", [], {"structure": "16:32"}),
        ("", [f"{ON_LINE}structure=2:4"], {"structure": "2:4"}),
        ("structure: 4x4-block", [], {"structure": "4x4-block"}),
        ('structure: {"*fc*": 2:4, "*": "1:4-cap"}', [], {"structure": {"*fc*": "2:4", "*": "1:4-cap"}}),
        ("mask_from: a.pt", [], {"mask_from": "a.pt"}),
        (
            "signs_from: a.ckpt, magnitudes_from: b.safetensors",
            [f"{ON_LINE}flip_signs=0.05"],
            {"signs_from": "a.ckpt", "magnitudes_from": "b.safetensors", "flip_signs": 0.05},
        ),
        ("flip_signs: 1", [], {"flip_signs": 1.0}),
    ],
    ids=str,
)
def test_arguments_are_read(config, line, options, expected):
    arguments = parsed(["--config", config(line), *options]).arguments
    assert {name: getattr(arguments, name) for name in expected} == expected


def test_structure_with_arguments_is_read(config):
    line = "structure: {class_path: lightning_signin.masks.NMCap, init_args: {n: 2, m: 4}}"
    structure = parsed(["--config", config(line)]).arguments.structure
    assert isinstance(structure, NMCap)
    assert (structure.n, structure.m) == (2, 4)


def test_command_trains_with_scored_masks_and_what_files_hold(config, tmp_path, capsys):
    cap = "structure: {'*layers.0.weight': unstructured, '*': 2:4-cap}"
    main(["fit", "--config", config(f"sparsity: 0.8, mask: {SNIP_2}, {cap}")])
    first = next((tmp_path / "runs").rglob("merged.safetensors"))
    checkpoint = next((tmp_path / "runs").rglob("*.ckpt"))
    masks = masks_from_file(checkpoint)
    kept, size = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    assert kept == round(0.2 * size)
    for name, mask in masks.items():
        rows = mask.movedim(1, -1)
        if mask.shape[1] % 4 == 0:
            assert int(rows.unflatten(-1, (-1, 4)).sum(-1).max()) <= 2, name
    line = f"mask_from: {checkpoint}, signs_from: {first}, magnitudes_from: {checkpoint}, flip_signs: 0.25"
    main(["fit", "--config", config(line), f"{ON_LINE}flip_signs=0", "--trainer.logger.init_args.name=again"])
    again = masks_from_file(next((tmp_path / "runs" / "again").rglob("*.ckpt")))
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert capsys.readouterr().out.count("merged file") == 2


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("mask_from: nothere.pt", "There is no file nothere.pt"),
        ("sparsity: 90", "lightning-signin: `sparsity` must be in [0, 1), got 90.0. Pass the fraction of zeros"),
        ("structure: 2:4", "`structure` does not fit network.layers.0.weight of shape (16, 1, 3, 3): groups of 4"),
    ],
    ids=str,
)
def test_what_a_run_does_not_allow_is_one_line(config, capsys, line, text):
    with pytest.raises(SystemExit):
        main(["fit", "--config", config(line)])
    assert text in capsys.readouterr().err
