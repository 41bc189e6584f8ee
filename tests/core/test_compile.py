"""`torch.compile` of the module that trains: one graph through rescales, and what was compiled is found once."""

import pytest
import torch
from torch import nn

from lightning_signin import masks, merge_, rescale_, sparsify
from tests.small import BATCHES, Small, callback, loader, trainer


class Graphs:
    """A compiler that runs what it is given, and keeps it."""

    def __init__(self) -> None:
        self.found: list = []

    def __call__(self, graph: torch.fx.GraphModule, _: list) -> object:
        self.found.append(graph)
        return graph.forward


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(1, 6, 3), nn.Flatten(), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 3))


@pytest.mark.parametrize("storage", ["compact", "dense"])
def test_a_compiled_step_goes_on_through_rescales_and_equals_the_eager_one(storage):
    torch._dynamo.reset()
    x, graphs, found = torch.randn(8, 1, 10), Graphs(), []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = sparsify(network(), sparsity=0.8, storage=storage)
        fast = torch.compile(net, backend=graphs, fullgraph=True) if compiled else net
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for step in range(6):
            optimizer.zero_grad()
            fast(x).square().mean().backward()
            optimizer.step()
            if step % 2:
                rescale_(net, optimizers=[optimizer], momentum="carry")
        found.append(merge_(net).state_dict())
    assert len(graphs.found) == 1
    assert all(torch.allclose(value, found[1][key], atol=1e-7) for key, value in found[0].items())


class Compiled(Small):
    """Its network is compiled where it is used, as `torch.compile(self.network)` and beside it."""

    def __init__(self, backend: object) -> None:
        super().__init__()
        self.conv = nn.Identity()
        self.network = network()
        self.fast = torch.compile(self.network, backend=backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fast(x.unsqueeze(1))


def test_the_callback_trains_a_compiled_network_in_one_graph():
    torch._dynamo.reset()
    graphs = Graphs()
    module = Compiled(graphs)
    trainer(callback(sparsity=0.8), epochs=3).fit(module, loader())
    assert len(module.losses) == 3 * BATCHES
    # Dynamo of torch 2.6 compiles the property of a weight, too, when it is first read outside the network.
    assert len(graphs.found) == (3 if torch.__version__.startswith("2.6.") else 1)
    assert float((module.network[3].weight == 0).float().mean()) > 0.5


def test_what_the_user_compiled_is_found_once():
    net = nn.Module()
    net.network = network()
    net.fast = torch.compile(net.network, backend=Graphs())
    sparsify(net, sparsity=0.8)
    assert list(masks(net)) == ["network.0.weight", "network.3.weight", "network.5.weight"]
    assert len(list(net.parameters())) == 3 * 3, "m, w and bias of each"
    assert list(merge_(net).state_dict())[:2] == ["network.0.weight", "network.0.bias"]
