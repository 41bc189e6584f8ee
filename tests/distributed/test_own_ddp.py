"""Masks that move in a DDP loop of one's own, all at defaults: ranks agree, or the run is refused in words."""

import pytest
import torch

from tests.own_ddp_run import RUNS
from tests.ranks import run_ranks
from tests.small import differing


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    run_ranks("tests.own_ddp_run", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", [name for name in RUNS if name != "mest"])
def test_ranks_hold_the_same_masks_and_weights(name, ranks):
    one, other = (rank[name] for rank in ranks)
    assert not isinstance(one, str), one
    assert one["moved"] == other["moved"] > 0
    assert differing(one["weights"], other["weights"]) == []


def test_a_rule_that_changes_counts_says_which_storage_it_needs(ranks):
    for rank in ranks:
        assert rank["mest"].startswith("MEST changes the number of weights of a layer, and on several ranks the fac")
        assert rank["mest"].endswith("Call `sparsify` with storage='dense'.")
