"""ZeroRedundancyOptimizer on four gloo ranks: as the same optimizer unsharded, on every rank, and resumed."""

import pytest
import torch

from tests.ranks import run_ranks
from tests.small import Small, differing
from tests.zero_run import RANKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("zero")
    run_ranks("tests.zero_run", path, timeout=600)
    return path


@pytest.fixture(scope="module")
def ranks(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", ["plain", "sharded", "resumed", "resumed in other buckets"])
def test_ranks_end_with_the_same_masks_and_weights(case, ranks):
    for other in ranks[1:]:
        assert other[case]["digest"] == ranks[0][case]["digest"]
        assert differing(other[case]["weights"], ranks[0][case]["weights"]) == []


def test_sharded_state_trains_as_the_whole_one(ranks):
    sharded, plain = ranks[0]["sharded"], ranks[0]["plain"]
    assert sharded["digest"] == plain["digest"]
    for name, weight in plain["weights"].items():
        torch.testing.assert_close(sharded["weights"][name], weight, rtol=1e-5, atol=1e-7)
    assert sharded["logged"] == pytest.approx(plain["logged"], rel=1e-5)
    assert sharded["logged"]["signin/sign_flips"] > 0


def test_every_rank_holds_a_part_of_the_state(ranks):
    held = [rank["sharded"]["states"] for rank in ranks]
    assert sum(held) == ranks[0]["plain"]["states"]
    assert all(held)


def test_checkpoint_is_plain_and_sparse(folder):
    saved = torch.load(folder / "mid.ckpt", weights_only=True)["state_dict"]
    module = Small()
    module.load_state_dict(saved, strict=True)
    sparse = sum(int(weight.count_nonzero()) for name, weight in saved.items() if weight.ndim > 1)
    assert sparse == round(0.3 * 1242)


def test_resume_equals_uninterrupted_where_ddp_keeps_its_buckets(ranks):
    for rank in ranks:
        assert differing(rank["sharded"]["weights"], rank["resumed"]["weights"]) == []
    assert not [message for message in ranks[0]["resumed"]["warned"] if "not bit for bit" in message]


def test_resume_in_other_buckets_differs_by_rounding_and_says_so(ranks):
    for name, weight in ranks[0]["sharded"]["weights"].items():
        resumed = ranks[0]["resumed in other buckets"]["weights"][name]
        torch.testing.assert_close(resumed, weight, rtol=1e-4, atol=1e-6)
    said = [message for message in ranks[0]["resumed in other buckets"]["warned"] if "not bit for bit" in message]
    assert len(said) == 1
    assert "DDP on more than two ranks sums gradients in a different order" in said[0]


def test_a_rescale_that_carries_momentum_is_refused(ranks):
    for rank in ranks:
        assert "A rescale has no rule for ZeroRedundancyOptimizer. Use momentum='keep'" in rank["carry"]
