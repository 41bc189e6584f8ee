"""Loops of one's own on two gloo ranks, in DistributedDataParallel and in Fabric: masks that move, and resuming."""

import pytest
import torch

from tests.own_loop_ddp_run import RESUMED
from tests.ranks import run_ranks
from tests.updates.loops import RULES, Loop


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_loops")
    run_ranks("tests.own_loop_ddp_run", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def check_equal(one, other):
    assert one["digest"] == other["digest"]
    assert all(map(torch.equal, one["factors"], other["factors"]))


@pytest.mark.parametrize("rule", [None, *RULES])
def test_ranks_hold_the_same_masks_and_factors(rule, ranks):
    check_equal(*(rank[f"bare {rule}"] for rank in ranks))


@pytest.mark.parametrize("rule", RULES)
def test_masks_have_moved(rule, ranks):
    assert ranks[0][f"bare {rule}"]["digest"] != ranks[0]["bare None"]["digest"]


def test_ranks_with_the_same_data_train_as_one(ranks):
    one, two = ranks[0]["alone"], ranks[0]["same data"]
    assert one["digest"] == two["digest"]
    assert all(map(torch.equal, one["factors"], two["factors"]))


@pytest.mark.parametrize("rule", RESUMED)
def test_resume_in_fabric_equals_the_uninterrupted_loop(rule, ranks):
    for rank in ranks:
        check_equal(rank[f"resumed {rule}"], rank[f"whole {rule}"])
        check_equal(rank[f"whole {rule}"], rank[f"bare {rule}"])


def test_sizes_that_buckets_cannot_follow_are_refused(ranks):
    for rank in ranks:
        assert "GMP changes the number of weights of a layer" in rank["refused"]["sizes"]


def test_ranks_with_other_masks_are_refused_on_all_of_them(ranks):
    for rank in ranks:
        assert rank["refused"]["other masks"].startswith("The ranks have different masks: ")


def test_one_process_without_ranks_changes_sizes_as_before():
    loop = Loop("gmp", storage="compact").move_masks().train(0, 40)
    assert loop.net[0].parametrizations.weight.original0.ndim == 1
