"""Two gloo ranks: identical masks, weights, signs and sharpness, exact resuming, sharded optimizers."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DistributedSampler

from lightning_signin import sparsify
from lightning_signin.metrics import SignFlips, sharpness
from tests.ranks import output_of, run_ranks
from tests.small import Small, data, differing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


def run(case: str, folder: Path) -> list[dict]:
    run_ranks("tests.ddp_run", case, folder)
    return [torch.load(folder / f"{case}{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", ["whole", "unseeded", "sharded", "averaged"])
def test_ranks_end_with_the_same_masks_and_weights(case, folder):
    first, second = run(case, folder)
    assert first["digest"] == second["digest"]
    assert differing(first["weights"], second["weights"]) == []
    assert sum(int(w.count_nonzero()) for n, w in first["weights"].items() if w.ndim > 1) == round(0.3 * 1242)
    if case == "unseeded":  # the ranks had chosen differently how their layers compute
        assert set(first["compute"].values()) == set(second["compute"].values()) == {"sparse"}


def test_command_ends_with_one_summary_on_two_ranks(tmp_path):
    executable = Path(sys.executable).parent / "lightning-signin"
    options = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [str(executable), "fit", "--config", "digits", *options, "--trainer.limit_train_batches=3"]
    assert output_of(command, tmp_path).count("merged.safetensors") == 1
    assert len(list(tmp_path.rglob("merged.safetensors"))) == 1


def test_resume_on_two_ranks_equals_uninterrupted(folder):
    if not (folder / "mid.ckpt").exists():
        run("whole", folder)
    whole = torch.load(folder / "whole0.pt", weights_only=True)
    resumed, other = run("resumed", folder)
    assert differing(whole["weights"], resumed["weights"]) == []
    assert differing(resumed["weights"], other["weights"]) == []


@pytest.fixture(scope="module")
def measured(request, folder):
    return [found["moments"] for found in run(request.param, folder)]


both = pytest.mark.parametrize("measured", ["measured", "measured rigl"], indirect=True)


@both
def test_ranks_log_the_same_signs_and_sharpness(measured):
    first, second = ([moment["logged"] for moment in moments[1:]] for moments in measured)
    assert len(first) == 3
    assert first == second
    assert first[-1]["signin/sharpness"] > 0 < first[-1]["signin/sign_flips"]


@both
def test_sharpness_is_that_of_one_process_with_both_ranks_batches(measured):
    x, y = data().tensors
    dealt = [list(DistributedSampler(data(), 2, rank, seed=1)) for rank in (0, 1)]  # as Lightning shuffles
    batches = [(x[share[i : i + 8]], y[share[i : i + 8]]) for share in dealt for i in (0, 8)]
    for moment in measured[0][1:]:
        found = sharpness(at(moment), lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), batches)
        assert moment["logged"]["signin/sharpness"] == pytest.approx(float(found), rel=1e-4)


@both
def test_sign_flips_are_those_of_one_process(measured):
    start, *moments = measured[0]
    flips = SignFlips(at(start), moving=True)
    for moment in moments:
        flips.update(at(moment))
        found = flips.compute()
        assert moment["logged"]["signin/sign_flips"] == pytest.approx(found["start"], abs=1e-6)
        if "last" in found:
            assert moment["logged"]["signin/sign_flips_since_last"] == pytest.approx(found["last"], abs=1e-6)


def at(moment: dict) -> Small:
    """A module of one process with the masks and weights of that moment of rank 0."""
    module = sparsify(Small(), mask=moment["masks"])
    module.load_state_dict(moment["weights"])
    return module
