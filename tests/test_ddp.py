"""Two gloo ranks: identical masks and weights, exact resuming, sharded optimizers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.small import differing

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


def run(case: str, folder: Path) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "LOCAL_RANK"))}
    command = [sys.executable, "-m", "tests.ddp_run", case, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{case}{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", ["whole", "unseeded", "sharded"])
def test_ranks_end_with_the_same_masks_and_weights(case, folder):
    first, second = run(case, folder)
    assert first["digest"] == second["digest"]
    assert differing(first["weights"], second["weights"]) == []
    assert sum(int(w.count_nonzero()) for n, w in first["weights"].items() if w.ndim > 1) == round(0.3 * 1242)


def test_command_ends_with_one_summary_on_two_ranks(tmp_path):
    executable = Path(sys.executable).parent / "lightning-signin"
    options = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [str(executable), "fit", "--config", "digits", *options, "--trainer.limit_train_batches=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.count("merged.safetensors") == 1, done.stderr[-3000:]
    assert len(list(tmp_path.rglob("merged.safetensors"))) == 1


def test_resume_on_two_ranks_equals_uninterrupted(folder):
    if not (folder / "mid.ckpt").exists():
        run("whole", folder)
    whole = torch.load(folder / "whole0.pt", weights_only=True)
    resumed, other = run("resumed", folder)
    assert differing(whole["weights"], resumed["weights"]) == []
    assert differing(resumed["weights"], other["weights"]) == []
