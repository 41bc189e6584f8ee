"""A sparse weight of an embedding whose gradient comes as a sparse tensor trains as one with an ordinary gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_signin import MaskUpdates, plain_view, sparsify
from lightning_signin.updates import Cosine, RigL
from tests.core.test_masked_product import KINDS


class Words(nn.Module):
    """An embedding, looked up as torch's module does or by function, or in bags; with a head that shares its weight."""

    def __init__(self, way: str, sparse: bool) -> None:
        super().__init__()
        self.way, self.sparse = way, sparse
        kind = nn.EmbeddingBag if way == "bag" else nn.Embedding
        self.table = kind(12, 6, sparse=sparse)
        self.head = nn.Linear(6, 12)
        if way == "tied":
            self.head.weight = self.table.weight

    def forward(self, x):
        if self.way == "function":
            return self.head(F.embedding(x, self.table.weight, sparse=self.sparse).mean(1))
        found = self.table(x)
        return self.head(found if self.way == "bag" else found.mean(1))


def trained(way: str, sparse: bool, update: bool = False, **options: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = sparsify(Words(way, sparse).double(), sparsity=0.5, include=["table.weight", "head.weight"], **options)
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), 0.2, momentum=0.9)
    updates = MaskUpdates(net, RigL(Cosine(2, 1.0)), [optimizer], total_steps=6) if update else None
    for _ in range(6):
        x = torch.randint(0, 12, (4, 3))
        optimizer.zero_grad()
        F.cross_entropy(net(x), x[:, 0]).backward()
        if updates is not None:
            updates.before_step(optimizer)
        optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize("way", ["module", "function", "bag", "tied"])
@pytest.mark.parametrize("storage", ["compact", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_gradient_trains_as_an_ordinary_one(way, storage, kind):
    found, expected = (trained(way, sparse, storage=storage, parametrization=KINDS[kind]) for sparse in (True, False))
    torch.testing.assert_close(found, expected)
    assert found["table.weight"].count_nonzero() <= 72


@pytest.mark.parametrize("storage", ["compact", "dense"])
def test_masks_move_by_a_sparse_gradient(storage):
    found, expected = (trained("module", sparse, update=True, storage=storage) for sparse in (True, False))
    torch.testing.assert_close(found, expected)
