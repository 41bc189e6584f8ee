"""The same numbers on XLA as on the CPU, and dense storage by itself. torch_xla's CPU runtime stands for a TPU."""

import importlib.util
import sys

import pytest
import torch

from tests.ranks import ROOT, output_of

RUNS = ["loop", "static", "rigl", "scored", "tied"]

if importlib.util.find_spec("torch_xla") is None:
    pytest.skip("needs torch_xla", allow_module_level=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By name: what the CPU and what XLA ended with, from a process of their own."""
    output = tmp_path_factory.mktemp("xla") / "runs.pt"
    output_of([sys.executable, "-m", "tests.xla_run", str(output)], ROOT, timeout=400, PJRT_DEVICE="CPU")
    return torch.load(output, weights_only=True)


@pytest.mark.parametrize("name", RUNS)
def test_weights_are_those_of_the_cpu(runs, name):
    on_cpu, on_xla = (found["weights"] for found in runs[name])
    assert list(on_cpu) == list(on_xla)
    for key, weight in on_cpu.items():
        torch.testing.assert_close(on_xla[key], weight, rtol=1e-4, atol=1e-5, msg=key)
        assert torch.equal(on_xla[key] == 0, weight == 0), key
    assert sum(int((weight == 0).sum()) for weight in on_xla.values()) > 100


def test_a_module_on_xla_gets_dense_storage_and_merges_without_changing_a_bit(runs):
    on_cpu, on_xla = runs["loop"]
    assert "compact" in on_cpu["storages"]
    assert on_xla["storages"] == ["dense"]
    assert on_xla["same"]


@pytest.mark.parametrize("name", RUNS[1:])
def test_a_fit_on_xla_chooses_dense_storage_and_logs_what_the_cpu_does(runs, name):
    on_cpu, on_xla = runs[name]
    assert "compact on cpu" in on_cpu["storages"]
    assert on_xla["storages"] == ["dense on xla"]
    assert on_xla["logged"].keys() == on_cpu["logged"].keys() >= {"signin/sparsity", "signin/sign_flips"}
    assert on_xla["logged"] == pytest.approx(on_cpu["logged"], rel=1e-3)


def test_the_device_of_the_run_decides_also_for_a_module_that_is_still_on_the_cpu(runs):
    assert runs["of a module on the CPU"] == {"auto": "dense", "compact": "compact", "dense": "dense"}


def test_tied_weights_stay_one_parameter(runs):
    for found in runs["tied"]:
        assert torch.equal(found["weights"]["again.weight"], found["weights"]["still.weight"])
