"""The main job as a user runs it: the command, its files, and a process that does not know this package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

# Loads every file strictly into the plain model, with this package made impossible to import.
FOREIGN = """
import importlib.util, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lightning_signin":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import load_file
spec = importlib.util.spec_from_file_location("models", sys.argv[1])
models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(models)
x = torch.arange(5 * 64.0).reshape(5, 1, 8, 8).sin()
outputs = []
for path in sys.argv[2:]:
    plain = models.Classifier(models.ResNet20())
    saved = load_file(path) if path.endswith("safetensors") else torch.load(path, weights_only=True)["state_dict"]
    plain.load_state_dict(saved, strict=True)
    with torch.no_grad():
        outputs.append(plain.eval()(x))
assert not any(name.startswith("lightning_signin") for name in sys.modules)
print(all(torch.equal(a, b) for a, b in zip(outputs[::2], outputs[1::2])), bool(outputs[0].abs().sum() > 0))
"""


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    executable = Path(sys.executable).parent / "lightning-signin"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    whole = [str(executable), *arguments]
    return subprocess.run(whole, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    extra = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"
    options = ["--trainer.callbacks.every_n_train_steps=100", "--trainer.callbacks.save_top_k=-1"]
    done = command("fit", "--config", "digits", extra, *options, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "runs" / "digits" / "version_0", done.stdout


def test_digits_is_accurate_at_90_percent_sparsity(run):
    accuracy = float(re.search(r"test_acc +([\d.]+)", run[1])[1])
    assert accuracy >= 0.96


def test_digits_prints_what_a_person_wants_to_know(run):
    folder, output = run
    assert "sparsity      90.00% of the selected weights are zero" in output
    assert re.search(r"sign flips +\d+\.\d\d% of the others changed sign", output)
    size = (folder / "merged.safetensors").stat().st_size / 1e6
    assert f"merged.safetensors  ({size:.2f} MB)" in output


def test_files_load_where_the_package_is_not_importable(run, tmp_path):
    folder, _ = run
    middle = folder / "checkpoints" / "epoch=10-step=200.ckpt"
    pairs = []
    for checkpoint in (middle, folder / "checkpoints" / "last.ckpt"):
        exported = tmp_path / f"{checkpoint.stem}.safetensors"
        assert command("export", str(checkpoint), "--output", str(exported), cwd=tmp_path).returncode == 0
        pairs += [str(checkpoint), str(exported)]
    pairs += [str(folder / "merged.safetensors"), str(folder / "checkpoints" / "last.ckpt")]
    models = ROOT / "lightning_signin" / "recipes" / "models.py"
    foreign = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(models), *pairs], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert foreign.stdout.split() == ["True", "True"], foreign.stderr[-2000:]


def test_inspect_shows_every_layer_with_its_flips(run):
    folder, printed = run
    table = command("inspect", str(folder / "checkpoints" / "last.ckpt"), cwd=folder).stdout.splitlines()
    assert table[0].split() == ["weight", "shape", "non-zeros", "sparsity", "sign", "flips"]
    assert len(table) == 24
    flips = re.search(r"sign flips +(\d+\.\d\d)%", printed)[1]
    assert table[-1].split() == ["total", "27,061", "90.00", "%", flips, "%"]
    assert command("inspect", str(folder / "merged.safetensors"), cwd=folder).stdout.splitlines()[-1] == table[-1]
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert f"{int(weights['network.layers.14.weight'].count_nonzero())}" in table[-2]


def test_plain_run_of_the_same_recipe_is_one_argument_away(tmp_path):
    plain = "--trainer.callbacks.init_args.parametrization=plain"
    done = command("fit", "--config", "digits", plain, "--trainer.fast_dev_run", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.glob("*.safetensors"))


def test_optimizer_of_the_command_line_trains_the_factors(tmp_path):
    options = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--optimizer=AdamW", "--optimizer.lr=0.01"]
    done = command("fit", "--config", "digits", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(re.search(r"sign flips +(\d+\.\d\d)%", done.stdout)[1]) > 0


def test_test_and_predict_run_from_a_checkpoint(run):
    folder, printed = run
    checkpoint = str(folder / "checkpoints" / "last.ckpt")
    done = command("test", "--config", "digits", "--ckpt_path", checkpoint, cwd=folder)
    assert re.search(r"test_acc +([\d.]+)", printed)[1][:5] in done.stdout, done.stderr[-2000:]
    for verb in ("validate", "predict"):
        assert command(verb, "--config", "digits", "--ckpt_path", checkpoint, cwd=folder).returncode == 0
