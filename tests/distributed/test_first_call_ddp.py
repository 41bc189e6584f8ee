"""On two gloo ranks the check for cuts makes nothing twice, and no rank waits for another."""

import json
import re

import pytest

from tests.callback.test_first_call import CUTS
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first_call")
    run_ranks("tests.first_call_ddp_run", folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("rank", [0, 1])
def test_steps_loaders_optimizers_and_samples_are_those_without_the_callback(ranks, rank):
    alone = ranks[rank]["alone"]
    counted = {"training_step": 5, "train_dataloader": 1, "configure_optimizers": 1, "drawn": 40}
    assert alone == {**counted, "error": None, "said": []}
    for case in ("random", "uneven"):
        assert {name: ranks[rank][case][name] for name in counted} == counted
        assert ranks[rank][case]["error"] is None


def test_a_rank_that_does_not_call_the_network_says_so_alone(ranks):
    assert [len(rank[case]["said"]) for case in ("random", "uneven") for rank in ranks] == [0, 0, 0, 1]
    assert "could not be checked" in ranks[1]["uneven"]["said"][0]


def test_a_mask_that_cuts_is_refused_on_every_rank(ranks):
    assert all(re.search(CUTS, rank["cut"]["error"]) for rank in ranks)
