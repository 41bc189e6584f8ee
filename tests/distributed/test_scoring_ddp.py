"""Two gloo ranks score as one process that has the batches of both."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DistributedSampler

from lightning_signin import masks, sparsify
from lightning_signin.masks import SNIP, TrainingData
from tests.ranks import run_ranks
from tests.scoring_ddp_run import CASES
from tests.small import data, differing, seeded


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    run_ranks("tests.scoring_ddp_run", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", [*CASES, "unseeded snip", "manual snip", "silent snip"])
def test_ranks_find_the_same_mask(ranks, case):
    first, second = (found[case] for found in ranks)
    assert differing(first, second) == []
    assert sum(int(mask.sum()) for mask in first.values()) == round(0.3 * 1242)


def test_mask_is_that_of_both_ranks_batches_together(ranks):
    """The mean of two ranks' gradients is the gradient of both batches."""
    x, y = data().tensors
    dealt = [list(DistributedSampler(data(), 2, rank, seed=1))[:8] for rank in (0, 1)]  # as Lightning shuffles
    shares = [(x[indices], y[indices]) for indices in dealt]
    task = TrainingData(lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), shares)
    found = {}
    for number in (1, 2):
        module = seeded()
        module.dropout.p = 0.0
        found[number] = masks(sparsify(module, sparsity=0.7, mask=SNIP(num_batches=number), data=task))
    assert differing(found[2], ranks[0]["snip"]) == []
    assert differing(found[1], ranks[0]["snip"]) != []
