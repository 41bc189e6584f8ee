"""PHEW's walks: their probabilities by hand, and that everything they visit is on a path from input to output."""

import pytest
import torch
from torch import Tensor, nn

from lightning_signin import masks, sparsify
from lightning_signin.masks import PHEW
from lightning_signin.masks.build import build_masks
from lightning_signin.masks.scores.phew import first_visits
from lightning_signin.objective.training_data import TrainingData
from lightning_signin.units.graph import Graph
from lightning_signin.units.walks import Walks
from tests.graph_networks import EVERY_NET, build, graph_of, weight_names

NEVER = torch.iinfo(torch.long).max
WALKS = 40_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(graph: Graph, direction: str) -> dict[str, Tensor]:
    """How often a walk takes each weight."""
    found = {}
    for place, walks, taken in getattr(Walks(graph, generator()), direction)(0, WALKS):
        layer = graph.layers[place]
        assert len(walks) == len(walks.unique()) == len(taken)
        found[layer.name] = (taken.bincount(minlength=layer.blocks.numel()) / WALKS).view(layer.blocks.shape).double()
    return found


def chain() -> tuple[nn.Module, Graph]:
    net = nn.Sequential(nn.Conv2d(2, 3, (1, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    return net, graph_of(net, torch.rand(1, 2, 2, 3, dtype=torch.float64))


def test_forward_walks_have_the_probabilities_of_the_weights():
    net, graph = chain()
    conv, linear = (net[place].weight.detach().abs() for place in (0, 3))
    first = conv / conv.sum((0, 2, 3), keepdim=True) / 2  # from each of two inputs in turn
    unit = first.sum((1, 2, 3))  # reaches a unit, which feeds four features alike
    second = linear / linear.sum(0) * (unit / 4).repeat_interleave(4)
    found = shares(graph, "forward")
    torch.testing.assert_close(found["0.weight"].view(conv.shape), first, atol=0.01, rtol=0)
    torch.testing.assert_close(found["3.weight"].view(linear.shape), second, atol=0.01, rtol=0)


def test_backward_walks_have_the_probabilities_of_the_weights():
    net, graph = chain()
    conv, linear = (net[place].weight.detach().abs() for place in (0, 3))
    last = linear / linear.sum(1, keepdim=True) / 2
    unit = last.sum(0).view(3, 4).sum(1)
    before = conv / conv.sum((1, 2, 3), keepdim=True) * unit.view(3, 1, 1, 1)
    found = shares(graph, "backward")
    torch.testing.assert_close(found["3.weight"].view(linear.shape), last, atol=0.01, rtol=0)
    torch.testing.assert_close(found["0.weight"].view(conv.shape), before, atol=0.01, rtol=0)


def test_walks_take_branches_alike():
    net, args = build("residual")
    graph = graph_of(net, *args)
    forward = {name: float(share.sum()) for name, share in shares(graph, "forward").items()}
    expected = {"stem.weight": 1, "a.weight": 0.5, "b.weight": 0.5, "shortcut.weight": 0.5, "fc.weight": 1}
    assert forward == pytest.approx(expected, abs=0.01)
    backward = {name: float(share.sum()) for name, share in shares(graph, "backward").items()}
    assert backward == pytest.approx(expected, abs=0.01)


def test_walks_back_choose_at_each_sum():
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.fc = (nn.Linear(3, 3) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.a(x)
            return self.fc(x + self.b(x))

    graph = graph_of(Nested().double().eval(), torch.rand(1, 3, dtype=torch.float64))
    backward = {name: float(share.sum()) for name, share in shares(graph, "backward").items()}
    expected = {"fc.weight": 1, "b.weight": 1 / 2, "a.weight": 1 / 2, "stem.weight": 1}
    assert backward == pytest.approx(expected, abs=0.01)


def test_walks_start_in_turn():
    _, graph = chain()
    walks = Walks(graph, generator())
    for first, expected in ((0, [0, 1, 0, 1, 0]), (3, [1, 0, 1, 0, 1])):
        _, who, taken = next(iter(walks.forward(first, 5)))
        assert (taken[who.argsort()] // 2 % 2).tolist() == expected  # positions in a kernel: 2, inputs: 2
        place, who, taken = next(iter(walks.backward(first, 5)))
        assert graph.layers[place].name == "3.weight"
        assert (taken[who.argsort()] // 12).tolist() == expected


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: net.get_parameter(name).detach() for name in weight_names(net)}


@EVERY_NET
@pytest.mark.parametrize("wanted", [8, 30])
def test_visited_weights_lie_on_ways_of_visited_weights(name, wanted):
    net, args = build(name)
    graph = graph_of(net, *args)
    first = first_visits(graph, weights_of(net), wanted, generator())
    depth = len(graph.layers)
    times = torch.cat([found.flatten() for found in first.values()])
    assert int((times < NEVER).sum()) >= wanted
    last = int(times.sort().values[wanted - 1]) // depth  # the walk that reaches the budget, to its end
    masks = {n: found // depth <= last for n, found in first.items()}
    fed, used = graph.reach(masks)
    on_way = dict.fromkeys(masks, torch.tensor(False))
    for layer, inputs, units in zip(graph.layers, fed, used, strict=True):
        if layer.parameter is not None:
            groups = layer.blocks.shape[0]
            ways = layer.joined(masks) & units.view(groups, -1, 1) & inputs.view(groups, 1, -1)
            on_way[layer.parameter] = on_way[layer.parameter] | ways
    for layer in graph.layers:
        if layer.parameter is not None:
            assert torch.equal(on_way[layer.parameter], layer.joined(masks)), layer.name


def masks_of(net: nn.Module, args: tuple[Tensor, ...], **options: object) -> dict[str, Tensor]:
    return build_masks(weights_of(net), mask="phew", module=net, data=TrainingData(example_input=args), **options)


@EVERY_NET
def test_masks_are_the_first_visits(name):
    net, args = build(name)
    weights = weights_of(net)
    total = sum(weight.numel() for weight in weights.values())
    masks = masks_of(net, args, sparsity=0.7, seed=3)
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.3 * total)
    again = masks_of(net, args, sparsity=0.7, seed=3)
    other = masks_of(net, args, sparsity=0.7, seed=4)
    assert all(torch.equal(masks[n], again[n]) for n in masks)
    assert not all(torch.equal(masks[n], other[n]) for n in masks)
    first = first_visits(graph_of(net, *args), weights, round(0.3 * total), generator(3))
    kept = torch.cat([first[n][masks[n]] for n in masks])
    rest = torch.cat([first[n][~masks[n]] for n in masks])
    assert int(kept.max()) < int(rest.min())


def test_a_count_for_each_layer_is_met_by_walks():
    net, args = build("residual")
    weights = weights_of(net)
    wanted = {name: weight.numel() // 3 for name, weight in weights.items()}
    first = first_visits(graph_of(net, *args), weights, wanted, generator())
    assert all(int((first[name] < NEVER).sum()) >= count for name, count in wanted.items())


def test_what_walks_hardly_visit_is_filled_with_the_largest_weights():
    net, args = build("residual")
    with torch.no_grad():
        net.b.weight[..., 0] *= 1e-9
    masks, weights = masks_of(net, args, sparsity=0.05), weights_of(net)
    wanted = sum(int(mask.sum()) for mask in masks.values())
    first = first_visits(graph_of(net, *args), weights, wanted, generator())
    unvisited = torch.cat([(first[name] == NEVER).flatten() for name in masks])
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    sizes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    assert bool(kept[~unvisited].all())
    assert bool(kept[unvisited].any())
    assert sizes[unvisited & kept].min() >= sizes[~kept].max()


def test_layers_of_zeros_are_walked_uniformly():
    net, args = build("residual")
    nn.init.zeros_(net.b.weight)
    share = shares(graph_of(net, *args), "forward")["b.weight"]
    torch.testing.assert_close(share, torch.full_like(share, 0.5 / share.numel()), atol=0.005, rtol=0)


def test_units_that_lead_nowhere_are_not_visited():
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(nn.functional.pad(self.a(x)[:, :3], (0, 1)))

    net = Dropped().double().eval()
    found = first_visits(graph_of(net, torch.rand(1, 3, dtype=torch.float64)), weights_of(net), 15, generator())
    assert bool((found["a.weight"] < NEVER)[:3].all())
    assert not bool((found["a.weight"] < NEVER)[3:].any())
    assert (found["b.weight"] < NEVER).tolist() == [[True, True, True, False]] * 2


class Aside(nn.Module):
    """A layer that the forward does not run, and one whose result is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aside, self.unused = nn.Linear(5, 8), nn.Linear(8, 2), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x)
        self.unused(hidden)
        return self.b(hidden)


@pytest.mark.parametrize("score", ["phew", "npb"])
def test_weights_off_every_way_are_refused(score):
    data = TrainingData(example_input=torch.rand(1, 5))
    with pytest.raises(
        ValueError, match=rf"mask='{score}' is undefined for aside\.weight, unused\.weight: in eval mode"
    ):
        sparsify(Aside(), mask=score, data=data)
    net = sparsify(Aside(), sparsity=0.5, mask=score, exclude=["aside.weight", "unused.weight"], data=data)
    assert {name: int(mask.sum()) for name, mask in masks(net).items()}.keys() == {"a.weight", "b.weight"}


def test_recurrence_is_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5))
    with pytest.raises(ValueError, match=r"mask='phew' is undefined for 1 \(lstm\): its walks follow single units"):
        build_masks(
            {"0.weight": net[0].weight}, mask=PHEW(), module=net, data=TrainingData(example_input=torch.rand(2, 1, 3))
        )
