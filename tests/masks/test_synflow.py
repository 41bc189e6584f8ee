"""SynFlow: its iterations against an own implementation, its conservation law, and layer collapse."""

import copy
import re
import warnings
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from lightning_signin import masks, sparsify
from lightning_signin.masks import SynFlow, TrainingData, budget
from lightning_signin.masks.scores.flow import flow_of, linear_
from lightning_signin.objective.network import Network
from tests import score_references as slow
from tests.score_references import Residual, scored

COLLAPSE = re.compile("distribution='global' would leave .* without any weight")
DEEP = (8, 8, 16, 16, 32, 32, 32, 32)


class Block(nn.Module):
    """A residual block with batch norm and a 1×1 shortcut where the width changes."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in range(2))
        self.shortcut = nn.Conv2d(width, out, 1, bias=False) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(self.norms[0](self.first(x)).relu()))
        return (y + self.shortcut(x)).relu()


def vgg(widths: tuple[int, ...], bias: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def resnet(widths: tuple[int, ...]) -> nn.Sequential:
    blocks = [Block(inputs, outputs) for inputs, outputs in zip((3, *widths), widths, strict=False)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def flows(module: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The scores of all parameters, biases too, and R."""
    positive = slow.positive(module)
    flow = positive(torch.ones_like(x, dtype=torch.float64)).sum()
    flow.backward()
    return {name: (p.grad * p).detach() for name, p in positive.named_parameters()}, flow.detach()


@pytest.mark.parametrize(
    ("distribution", "sparsity"), [("global", 0.5), ("global", 0.9), ("balanced", 0.5), ("balanced", 0.97)]
)
def test_synflow_iterates_as_an_own_implementation(distribution, sparsity):
    net, x = Residual(), torch.randn(5, 2, 4, 4)
    _, built = scored(
        net, SynFlow(iterations=5), TrainingData(example_input=x), sparsity=sparsity, distribution=distribution
    )
    names, density = slow.selected(net), 1 - Fraction(str(sparsity))
    steps = slow.synflow(net, x, names, density, 5, balanced=distribution == "balanced")
    for name in names:
        assert torch.equal(built[name], steps[-1][name]), name
    once = slow.synflow(net, x, names, density, 1, balanced=distribution == "balanced")[0]
    assert any(not torch.equal(built[name], once[name]) for name in names)


def test_what_was_pruned_ranks_below_weights_without_flow():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    net.load_state_dict({"0.weight": torch.tensor([[0.1, 2.0], [0.1, 3.0]]), "1.weight": torch.ones(1, 2)})
    data = TrainingData(example_input=torch.ones(1, 2))
    # From iteration 9 on the second layer has one weight left, of unit 1, so that unit 0 passes nothing on.
    _, found = scored(net, SynFlow(iterations=10), data, sparsity=0.5, distribution="balanced")
    assert found["1.weight"].tolist() == [[False, True]]
    assert found["0.weight"].tolist() == [[False, True], [False, True]]


def test_one_iteration_scores_the_flow_through_each_weight():
    net, x = Residual(), torch.randn(5, 2, 4, 4)
    found, _ = scored(net, SynFlow(iterations=1), TrainingData(example_input=x))
    expected, _ = flows(net, x[:1])
    for name, score in found.items():
        assert score.dtype == torch.float64
        torch.testing.assert_close(score / 5, expected[name])  # R is the sum over the given batch of five


def test_layers_of_a_chain_sum_to_the_flow():
    layers = [nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2, bias=False), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 7, bias=False))
    x = torch.randn(1, 3, 8, 8)
    found, _ = scored(net, SynFlow(iterations=1), TrainingData(example_input=x))
    _, flow = flows(net, x)
    assert len(found) == 3
    for score in found.values():
        torch.testing.assert_close(score.sum(), flow)


def test_hidden_units_pass_on_what_they_get():
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(1, 5)
    found, _ = scored(net, SynFlow(iterations=1), TrainingData(example_input=x))
    every, _ = flows(net, x)
    for layer in (0, 2):
        incoming = found[f"{layer}.weight"].sum(1) + every[f"{layer}.bias"]
        torch.testing.assert_close(incoming, found[f"{layer + 2}.weight"].sum(0))


def test_cuts_of_a_residual_network_sum_to_the_flow():
    net, x = Residual(), torch.randn(1, 2, 4, 4)
    nn.init.zeros_(net.norm.bias)  # biases are sources of flow: without them all of it comes from the input
    nn.init.zeros_(net.norm.running_mean)
    nn.init.zeros_(net.branch.bias)
    nn.init.zeros_(net.head.bias)
    found, _ = scored(net, SynFlow(iterations=1), TrainingData(example_input=x))
    _, flow = flows(net, x)
    sums = {name.removesuffix(".weight"): score.sum() for name, score in found.items()}
    for cut in (sums["stem"], sums["branch"] + sums["shortcut"], sums["head"]):
        torch.testing.assert_close(cut, flow)


@pytest.mark.parametrize("between", [nn.LayerNorm(8), nn.GELU(), nn.Softmax(-1)])
def test_other_layers_break_the_conservation_law(between):
    net = nn.Sequential(nn.Linear(5, 8, bias=False), between, nn.Linear(8, 3, bias=False))
    found, _ = scored(net, SynFlow(iterations=1), TrainingData(example_input=torch.randn(1, 5)))
    first, last = (score.sum() for score in found.values())
    assert abs(first - last) > 0.01 * last


def collapsed(net: nn.Module, sparsity: float, iterations: int = 100) -> set[str]:
    """The layers that SynFlow leaves without any weight at any iteration; ours agrees where there are none."""
    data, names = TrainingData(example_input=torch.randn(1, 3, 4, 4)), slow.selected(net)
    steps = slow.synflow(net, data.example_input, names, 1 - Fraction(str(sparsity)), iterations)
    empty = {name for step in steps for name, mask in step.items() if not mask.any()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, found = scored(net, SynFlow(iterations), data, sparsity=sparsity)
    assert any(COLLAPSE.search(str(warning.message)) for warning in caught) == bool(empty)
    assert sum(int(mask.sum()) for mask in found.values()) == budget(sparsity, sum(m.numel() for m in found.values()))
    if not empty:
        assert all(torch.equal(found[name], steps[-1][name]) for name in names)
    return {name.removesuffix(".weight") for name in empty}


@pytest.mark.parametrize(("widths", "sparsity"), [((16, 32, 64), 0.999), (DEEP, 0.99), (DEEP, 0.999)])
def test_a_hundred_iterations_keep_every_layer_of_a_chain(widths, sparsity):
    assert not collapsed(vgg(widths), sparsity)
    assert len(collapsed(vgg(widths), sparsity, iterations=1)) >= 3


@pytest.mark.parametrize("sparsity", [0.99, 0.999])
def test_a_hundred_iterations_keep_a_residual_network_whole(sparsity):
    empty = collapsed(resnet((16, 32, 64)), sparsity)
    assert all(name.endswith(("first", "second")) for name in empty)  # shortcuts lead past them
    assert "2.shortcut" in collapsed(resnet((16, 32, 64)), sparsity, iterations=1)


def test_biases_can_starve_the_layers_before_them():
    assert "0" in collapsed(vgg(DEEP, bias=True), 0.999)


def test_flows_beyond_single_precision_are_scored():
    layers = [part for _ in range(40) for part in (nn.Linear(64, 64), nn.ReLU())]
    net, x = nn.Sequential(*layers, nn.Linear(64, 3)), torch.randn(1, 64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(4)
    positive = copy.deepcopy(net)
    linear_(positive)
    assert flow_of(Network(positive, (torch.ones_like(x),), {}, {})).isinf()
    found, _ = scored(net, SynFlow(iterations=2), TrainingData(example_input=x))
    assert all(score.isfinite().all() for score in found.values())
    assert max(score.max() for score in found.values()) > torch.finfo(torch.float32).max


def test_flows_beyond_double_precision_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    with torch.no_grad():
        net[0].weight.fill_(1e200)
        net[2].weight.fill_(1e200)
    with pytest.raises(ValueError, match=r"mask='synflow': the flow is inf\. Check that the weights are finite"):
        sparsify(net, sparsity=0.5, mask="synflow", data=TrainingData(example_input=torch.ones(1, 4)))


class StartsFromZeros(nn.Module):
    """A recurrence whose first state the forward makes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Linear(3, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(1, len(x), 4)
        return self.head(self.lstm(self.embed(x), (state, state))[0])


def test_tensors_that_the_forward_makes_are_double_too():
    net = sparsify(
        StartsFromZeros(), sparsity=0.5, mask="synflow", data=TrainingData(example_input=torch.ones(1, 5, 3))
    )
    assert sum(int(mask.sum()) for mask in masks(net).values()) == (3 * 4 + 2 * 64 + 4 * 2) // 2
    assert torch.get_default_dtype() == torch.float32


def test_weights_off_the_network_are_refused():
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(ValueError, match=r"mask='synflow' is undefined for unused\.weight: .* does not depend on it\."):
        sparsify(Aside(), mask="synflow", data=TrainingData(example_input=torch.ones(1, 4)))


def test_tied_weights_are_scored_once():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    net[2].weight = net[0].weight
    x = torch.randn(1, 6)
    found, _ = scored(net, SynFlow(iterations=1), TrainingData(example_input=x))
    expected, _ = flows(net, x)
    assert list(found) == ["0.weight", "4.weight"]
    torch.testing.assert_close(found["0.weight"], expected["0.weight"])


@pytest.mark.parametrize("iterations", [0, 2.5])
def test_iterations_are_whole_numbers(iterations):
    with pytest.raises(ValueError, match=f"`iterations` must be a whole number of at least 1, got {iterations}"):
        SynFlow(iterations=iterations)
