"""The unit graph against the slow reference: in a network of positive weights and ReLUs, a gradient is a way."""

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin.units.tracing import trace
from tests.graph_networks import EVERY_NET, Branches, Recurrent, build, graph_of, weight_names


def kernel_mask(shape: torch.Size, density: float) -> Tensor:
    return (torch.rand(*shape[:2], *[1] * (len(shape) - 2)) < density).expand(shape)


def flat(values: object) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(values)


@EVERY_NET
@pytest.mark.parametrize("density", [0.2, 0.4])
def test_reach_is_where_the_gradients_of_a_positive_network_are(name, density):
    net, args = build(name)
    graph = graph_of(net, *args)
    for _ in range(10):
        # Whole kernels, since the graph knows no places: there, all places of a map are alike.
        masks = {n: kernel_mask(p.shape, density) for n, p in net.named_parameters() if p.dim() > 1}
        for n, parameter in net.named_parameters():
            parameter.data = (torch.rand_like(parameter) + 0.5) * masks.get(n, "bias" not in n)
        net.zero_grad()
        outputs = flat(net(*args))
        sum(output.sum() for output in outputs).backward()
        fed, used = graph.reach(masks)
        found: dict[str, Tensor] = {}
        for layer, inputs, units in zip(graph.layers, fed, used, strict=True):
            if layer.parameter is not None:
                groups = layer.blocks.shape[0]
                ways = layer.joined(masks) & units.view(groups, -1, 1) & inputs.view(groups, 1, -1)
                found[layer.parameter] = found.get(layer.parameter, torch.tensor(False)) | ways
        slopes = {n: (p.grad != 0) & masks[n] for n, p in net.named_parameters() if n in masks}
        for layer in graph.layers:
            if layer.parameter is not None:
                assert torch.equal(found[layer.parameter], layer.selected(slopes).any(3)), layer.name
        live = [bool(inputs.any()) for layer, inputs in zip(graph.layers, fed, strict=True) if layer.kind == "output"]
        assert live == [bool((output != 0).any()) for output in outputs]


def test_forks_and_sums_are_probabilities():
    net, args = build("residual")
    graph = graph_of(net, *args)
    name = [layer.name for layer in graph.layers]
    ways = {(name[e.source], name[e.target]): (e.forward, e.backward) for e in graph.edges}
    assert ways["stem.weight", "a.weight"] == (1 / 2, 1)
    assert ways["stem.weight", "b.weight"] == (1 / 4, 1 / 2)  # past a, then one of two readers of the sum
    assert ways["a.weight", "shortcut.weight"] == (1 / 2, 1 / 2)
    assert ways["b.weight", "fc.weight"] == (1, 1 / 2)
    for layer in range(len(graph.layers) - 1):
        assert sum(edge.forward for edge in graph.out_of[layer]) == 1
    for layer in range(1, len(graph.layers)):
        assert sum(edge.backward for edge in graph.into[layer]) == 1


def test_labels_follow_concatenation_slices_and_flattening():
    net, args = build("concat")
    graph = graph_of(net, *args)
    labels = {(graph.layers[e.source].name, graph.layers[e.target].name): e.labels.tolist() for e in graph.edges}
    assert labels["b.weight", "grouped.weight"] == [0, 1, 2, -1, -1, -1]
    assert labels["a.weight", "grouped.weight"] == [-1, -1, -1, 0, 1, 2]
    assert labels["depthwise.weight", "up.weight"] == [1, 2, 3]
    assert labels["up.weight", "fc.weight"] == [unit for unit in range(4) for _ in range(9)] + [-1] * 8
    assert labels["rest.weight", "fc.weight"] == [-1] * 36 + [0, 1] * 4  # channels last


def test_feed_adds_at_joins():
    net, args = build("two inputs")
    graph = graph_of(net, *args)
    place = next(i for i, layer in enumerate(graph.layers) if layer.parameter == "twice.weight")
    values = [torch.full((layer.units,), float(i), dtype=torch.float64) for i, layer in enumerate(graph.layers)]
    sources = [edge.source for edge in graph.into[place]]
    assert graph.feed(place, values).tolist() == [float(sum(sources))] * 4
    assert [layer.parameter for layer in graph.layers].count("twice.weight") == 2


class Rearranged(nn.Module):
    """Weights that reach their operation transposed, standardized, or by a lookup."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.matrix = nn.Parameter(torch.randn(3, 4))
        self.turned = nn.Parameter(torch.randn(6, 4))
        self.kernel = nn.Parameter(torch.randn(2, 6, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = ((self.embedding(tokens) @ self.matrix).relu() @ self.turned.T).transpose(1, 2)
        kernel = F.batch_norm(self.kernel.reshape(1, 2, -1), None, None, training=True)
        return F.conv1d(x, kernel.reshape_as(self.kernel))


def test_weights_are_arranged_as_inputs_and_units():
    net = Rearranged().double().eval()
    graph = graph_of(net, torch.zeros(1, 6, dtype=torch.long))
    assert [layer.parameter for layer in graph.layers] == [None, "embedding.weight", "matrix", "turned", "kernel", None]
    numbers = {name: torch.arange(p.numel()).view(p.shape) for name, p in net.named_parameters()}
    arranged = [layer.selected(numbers) for layer in graph.layers[1:5]]
    assert torch.equal(arranged[0][0, ..., 0], numbers["embedding.weight"].T)
    assert torch.equal(arranged[1][0, ..., 0], numbers["matrix"].T)
    assert torch.equal(arranged[2][0, ..., 0], numbers["turned"])
    assert torch.equal(arranged[3][0], numbers["kernel"])
    assert torch.equal(graph.layers[2].blocks[0, ..., 0], net.matrix.detach().T)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


def test_gates_join_and_equal_ways_are_one():
    graph = graph_of(Gate().double().eval(), torch.rand(1, 2, 4, 4, dtype=torch.float64))
    ends = [(graph.layers[e.source].name, e.forward, e.backward) for e in graph.into[-1]]
    assert ends == [("conv.weight", 0.5, 0.5), ("gate.weight", 1.0, 0.5)]
    doubled = nn.Sequential(nn.Linear(2, 2), _Doubled()).double().eval()
    (edge,) = graph_of(doubled, torch.rand(1, 2, dtype=torch.float64)).into[-1]
    assert (edge.forward, edge.backward) == (1.0, 1.0)


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() + x.sigmoid()


def test_recurrence_mixes_and_is_named():
    graph = graph_of(Recurrent().double().eval(), torch.rand(1, 7, 3, dtype=torch.float64))
    assert [layer.name for layer in graph.layers if layer.kind == "mixing"] == ["lstm (lstm)"]
    with pytest.raises(ValueError, match=r"mask='phew' is undefined for lstm \(lstm\): its walks follow single units"):
        graph.check_units("phew", "its walks follow")
    kept = {"first.weight": torch.tensor([True, False, False, False]).unsqueeze(1).expand(4, 3).clone()}
    assert all(bool(units.all()) for units in graph.reach(kept)[1][2:])
    kept["first.weight"][:] = False
    assert not any(bool(inputs.any()) for inputs in graph.reach(kept)[0][2:])


def test_channels_read_across_positions_mix():
    mixer = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Linear(5, 6)).double().eval()
    graph = graph_of(mixer, torch.rand(1, 2, 5, dtype=torch.float64))
    assert [layer.name for layer in graph.layers if layer.kind == "mixing"] == ["1 (linear)"]


def test_attention_of_a_vision_transformer_mixes():
    timm = pytest.importorskip("timm")
    net = timm.create_model("deit_tiny_patch16_224", depth=2).double().eval()
    names = {f"net.{name}": name for name in weight_names(net) if "pos" not in name}
    graph = trace(net, (torch.rand(1, 3, 224, 224, dtype=torch.float64),), {}, names)
    mixing = [layer.name for layer in graph.layers if layer.kind == "mixing"]
    assert mixing == [f"net.blocks.{block}.attn (scaled_dot_product_attention)" for block in (0, 1)]
    fed, used = graph.reach({})
    assert all(bool(part.all()) for part in [*fed, *used])


def test_resnet_is_followed_without_mixing():
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet18(num_classes=10).double().eval()
    graph = graph_of(net, torch.rand(1, 3, 32, 32, dtype=torch.float64))
    graph.check_units("phew", "its walks follow")
    assert {layer.parameter for layer in graph.layers} - {None} == set(weight_names(net))
    assert all(bool(part.all()) for parts in graph.reach({}) for part in parts)


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(1, 4, dtype=x.dtype)
        y[:, :2] = self.fc(x)
        return y


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.ones_like(x))


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Constant, "does not depend on its input"), (Writes, "writes into a part of a tensor"), (Branches, "")],
)
def test_what_cannot_be_traced_is_an_error(kind, why):
    with pytest.raises(ValueError, match=rf"The forward of {kind.__name__} cannot be traced .*{why}"):
        graph_of(kind().double().eval(), torch.rand(1, 2, dtype=torch.float64))


def test_a_failed_trace_prints_and_logs_nothing(capfd, caplog):
    with pytest.raises(ValueError, match="The forward of Branches cannot be traced"):
        graph_of(Branches().double().eval(), torch.rand(1, 2, dtype=torch.float64))
    assert tuple(capfd.readouterr()) == ("", "")
    logging.getLogger("after").warning("said")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == ["said"]


def test_a_block_without_gradients_mixes():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.a(x)
            return self.b(x)

    with torch.enable_grad():
        graph = graph_of(Frozen().double().eval(), torch.rand(1, 2, dtype=torch.float64))
    assert [layer.kind for layer in graph.layers][-2:] == ["weight", "output"]
