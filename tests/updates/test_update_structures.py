"""Update rules in patterns: what comes keeps to the structure, and the count stays exact."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_signin import MaskUpdates, masks, plain_view, sparsify
from lightning_signin.masks.structures import parse_structure
from lightning_signin.updates import ACDC, GMP, MEST, SET, Constant, Cosine, Cubic, Once, OneShot, RigL, SRigL, Stages
from tests import reference

STRUCTURES = ["unstructured", "2:4", "2:4-cap", "2x4-block", "constant-fan-in"]
RULES = {
    "set": SET(Constant(2), drop_fraction=0.5),
    "rigl": RigL(Cosine(2), drop_fraction=0.6),
    "mest": MEST(Stages(2), mutation=0.15),
    "gmp": GMP(Cubic(2)),
    "one-shot": OneShot(Once(0.5)),
    "acdc": ACDC(),
}


class Convolutions(nn.Module):
    """A convolution, a transposed one, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(4, 8, 3, padding=1)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(self.conv(self.up(x).relu()).relu().mean(-1))


def oriented(name: str, mask: torch.Tensor) -> np.ndarray:
    return (mask.transpose(0, 1) if name == "up.weight" else mask).numpy()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_masks_stay_in_their_pattern(rule, structure):
    sparsity = 0.75
    start = {"sparsity": 0.0} if rule.start_sparsity == 0 else {"sparsity": sparsity, "structure": structure}
    net = sparsify(Convolutions(), distribution="uniform", **start)
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    updates = MaskUpdates(net, rule, [optimizer], total_steps=40, sparsity=sparsity, structure=structure)
    seen = {str(masks(net)["fc.weight"].tolist())}
    for step in range(40):
        updates.before_batch()
        optimizer.zero_grad()
        (net(torch.randn(8, 4, 5)) - 1).square().mean().backward()
        updates.before_step(optimizer)
        optimizer.step()
        seen.add(str(masks(net)["fc.weight"].tolist()))
        sparse_phase = not isinstance(rule, GMP | OneShot | ACDC) or step >= updates.steps[-1]
        if sparse_phase:
            for name, mask in masks(net).items():
                assert reference.in_pattern(structure)(oriented(name, mask)), (step, name)
    assert len(seen) > 1
    target = reference.budget("0.75", sum(mask.numel() for mask in masks(net).values()))
    assert sum(int(mask.sum()) for mask in masks(net).values()) == target
    for name, mask in masks(net).items():
        shape = oriented(name, mask).shape
        assert int(mask.sum()) <= parse_structure(structure).capacity(shape)


def test_srigl_gives_every_neuron_left_the_same_fan_in():
    net = sparsify(Convolutions(), sparsity=0.5, structure="constant-fan-in", distribution="uniform")
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), 0.3)
    updates = MaskUpdates(net, SRigL(Cosine(2), min_salient=0.95), [optimizer], total_steps=40, sparsity=0.5)
    ablated = 0
    for _ in range(40):
        optimizer.zero_grad()
        (net(torch.randn(8, 4, 5)) - 1).square().mean().backward()
        if not updates.before_step(optimizer):
            optimizer.step()
        for name, mask in masks(net).items():
            rows = oriented(name, mask).reshape(8, -1).sum(1)
            left = rows[rows > 0]
            assert len(set(left.tolist())) == 1
            most = oriented(name, mask)[0].size
            assert left[0] == min(round(updates.targets[name] / len(left)), most)
            ablated = max(ablated, 8 - len(left))
    assert ablated > 0
