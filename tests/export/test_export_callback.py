"""`SignInCallback(export=…)`: files for inference at the end of a fit."""

import fsspec
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_signin import SignInCallback
from lightning_signin.export import load_compressed
from lightning_signin.weightfiles.saved import read_weights
from tests.small import BATCHES, callback, copies, differing, loader, seeded, trainer


def equal(found: dict, expected: dict) -> bool:
    return not differing(dict(sorted(found.items())), dict(sorted(expected.items())))


def fit(folder, export, **options):
    model = seeded()
    kept = ModelCheckpoint(
        options.pop("dirpath", folder / "kept"), save_top_k=2, save_last=True, monitor="step", mode="max"
    )
    run = trainer(
        callback(export=export), kept, epochs=4, enable_checkpointing=True, default_root_dir=folder, **options
    )
    run.fit(model, loader())
    return run, model, kept


@pytest.mark.parametrize(
    ("export", "suffixes"),
    [
        ("compressed", [".compressed.safetensors"]),
        (["safetensors", "compressed"], [".compressed.safetensors", ".safetensors"]),
    ],
    ids=["one", "two"],
)
def test_merged_weights_and_every_kept_checkpoint_are_written(tmp_path, export, suffixes):
    run, model, kept = fit(tmp_path, export)
    for suffix in suffixes:
        merged = read_weights(tmp_path / f"merged{suffix}")
        assert equal(merged.tensors, copies(model))
        assert merged.kept == read_weights(kept.last_model_path).kept
        assert sum(merged.flips.values()) == round(
            float(run.callback_metrics["signin/sign_flips"]) * sum(merged.kept.values())
        )
    checkpoints = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert len(checkpoints) == 3
    expected = {path.name for path in checkpoints} | {path.stem + suffix for path in checkpoints for suffix in suffixes}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == expected
    for path in checkpoints:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert equal(load_compressed(path.with_suffix(".compressed.safetensors")), state)
    best = load_compressed(str(kept.best_model_path).replace(".ckpt", ".compressed.safetensors"))
    steps = {path.stem for path in checkpoints}
    assert f"epoch=2-step={3 * BATCHES}" in steps
    assert equal(best, copies(model))


def test_checkpoints_behind_urls_get_their_files_there(tmp_path):
    _, model, _ = fit(tmp_path, "compressed", dirpath="memory://kept/here")
    found = [path.rpartition("/")[2] for path in fsspec.filesystem("memory").find("/kept/here")]
    assert sorted(found) == sorted(
        f"{stem}{suffix}"
        for stem in ("epoch=2-step=30", "epoch=3-step=40", "last")
        for suffix in (".ckpt", ".compressed.safetensors")
    )
    assert equal(load_compressed("memory://kept/here/last.compressed.safetensors"), copies(model))


def test_nothing_is_written_unasked_or_in_a_trial_run(tmp_path):
    run, _, _ = fit(tmp_path, None)
    assert not list(tmp_path.rglob("*.safetensors"))
    run, _, _ = fit(tmp_path / "trial", "compressed", fast_dev_run=2)
    assert run.fast_dev_run == 2
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("export", ["onnx", "ckpt", ["compressed", "zip"]], ids=str)
def test_other_formats_are_refused_at_once(export):
    with pytest.raises(ValueError, match="`export` must be one of 'safetensors', 'compressed'; got "):
        SignInCallback(export=export)
