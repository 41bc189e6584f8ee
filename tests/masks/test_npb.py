"""NPB's closed form against brute force and an integer solver."""

from itertools import product
from math import ceil

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from lightning_signin.masks import NPB
from lightning_signin.masks.build import build_masks
from lightning_signin.masks.scores.npb import spread, weights_per_input
from lightning_signin.objective.training_data import TrainingData
from lightning_signin.units.tracing import trace


def largest_flow(paths: Tensor, capacity: int, number: int) -> float:
    """B's scale: all weights at the inputs with the most paths, one after the other."""
    units = sorted((float(p) for p in paths.flatten() for _ in range(capacity)), reverse=True)
    return sum(units[:number]) or 1.0


def objective(m: Tensor, paths: Tensor, most: int, alpha: float, beta: float) -> float:
    """α·A + (1 − α)·B + β·Reg for M of shape (groups, units, inputs)."""
    groups, units, inputs = m.shape
    number = int(m.sum())
    nodes = int((m.sum(1) > 0).sum() + (m.sum(2) > 0).sum()) / (groups * (units + inputs))
    flow = float((m.sum(1) * paths).sum()) / largest_flow(paths, units * most, number)
    return alpha * nodes + (1 - alpha) * flow + beta * int((m > 0).sum()) / number


def solve(paths: Tensor, units: int, most: int, number: int, alpha: float, beta: float) -> float:
    """The optimum by mixed-integer programming: M, whether a kernel is used, whether an input or a unit is."""
    groups, inputs = paths.shape
    shape = (groups, units, inputs)
    size = groups * units * inputs
    m, used = np.arange(size).reshape(shape), size + np.arange(size).reshape(shape)
    rows = 2 * size + np.arange(groups * inputs).reshape(groups, inputs)
    columns = 2 * size + groups * inputs + np.arange(groups * units).reshape(groups, units)
    total = 2 * size + groups * (inputs + units)
    gain = np.zeros(total)
    gain[m] = ((1 - alpha) * paths.numpy() / largest_flow(paths, units * most, number))[:, None, :]
    gain[used] = beta / number
    gain[2 * size :] = alpha / (groups * (units + inputs))
    constraints = []

    def at_most(small: int, large: np.ndarray) -> None:
        row = np.zeros(total)
        row[small], row[large] = 1, -1
        constraints.append(row)

    for g, j, i in product(range(groups), range(units), range(inputs)):
        at_most(used[g, j, i], m[g, j, i])
    for g, i in product(range(groups), range(inputs)):
        at_most(rows[g, i], used[g, :, i])
    for g, j in product(range(groups), range(units)):
        at_most(columns[g, j], used[g, j, :])
    whole = np.zeros(total)
    whole[:size] = 1
    upper = np.ones(total)
    upper[:size] = most
    found = milp(
        -gain,
        constraints=[LinearConstraint(np.array(constraints), ub=0), LinearConstraint(whole, number, number)],
        integrality=np.ones(total),
        bounds=Bounds(0, upper),
        options={"mip_rel_gap": 0},
    )
    assert found.success
    return -found.fun


def chosen(paths: Tensor, units: int, kernel: int, number: int, npb: NPB) -> Tensor:
    """M of NPB's mask."""
    groups, inputs = paths.shape
    mask = npb.choose_layer(torch.rand(groups, units, inputs, kernel, dtype=torch.float64), paths, number)
    assert int(mask.sum()) == number
    return mask.sum(3)


SETTINGS = [(0.01, 1.0), (0.99, 0.001), (0.5, 0.0), (0.0, 0.0), (1.0, 0.5), (0.3, 2.0)]


@pytest.mark.parametrize(("alpha", "beta"), SETTINGS)
@pytest.mark.parametrize(
    ("groups", "units", "inputs", "kernel", "most"),
    [(1, 4, 5, 1, 1), (1, 3, 4, 9, 4), (2, 3, 2, 4, 2), (3, 1, 1, 9, 9)],
)
def test_the_layer_is_as_good_as_an_integer_solvers(alpha, beta, groups, units, inputs, kernel, most):
    kernels = groups * units * inputs
    for number in {1, 2, kernels // 2, kernels, kernels * kernel // 2, kernels * kernel - 1} - {0}:
        paths = torch.randint(0, 6, (groups, inputs), dtype=torch.float64)
        limit = min(kernel, max(most, ceil(number / kernels)))
        found = chosen(paths, units, kernel, number, NPB(alpha, beta, most))
        assert int(found.max()) <= limit
        best = solve(paths, units, limit, number, alpha, beta)
        assert objective(found, paths, limit, alpha, beta) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), SETTINGS)
def test_the_layer_is_as_good_as_the_best_of_all(alpha, beta):
    for groups, units, inputs in ((1, 2, 3), (1, 3, 2), (2, 2, 1)):
        paths = torch.randint(1, 5, (groups, inputs), dtype=torch.float64)
        counts = torch.tensor(list(product(range(3), repeat=groups * units * inputs))).view(-1, groups, units, inputs)
        for number in range(1, 2 * groups * units * inputs):
            fitting = counts[counts.sum((1, 2, 3)) == number]
            best = max(objective(m, paths, 2, alpha, beta) for m in fitting)
            found = objective(chosen(paths, units, 2, number, NPB(alpha, beta, 2)), paths, 2, alpha, beta)
            assert found == pytest.approx(best, abs=1e-12)


def test_inputs_with_equal_paths_take_turns():
    each = weights_per_input(torch.ones(1, 4, dtype=torch.float64), units=8, most=1, number=18, alpha=0.01, beta=1.0)
    assert each.tolist() == [[5, 5, 4, 4]]


def test_kernels_are_spread_over_all_units():
    kernels = torch.tensor([[1, 2, 0, 5, 2], [3, 0, 1, 0, 1]])
    taken = spread(kernels, torch.rand(2, 5, 5))
    assert torch.equal(taken.sum(1), kernels)
    assert bool((taken.sum(2) > 0).all())
    loads = taken.sum(2)
    assert int((loads.amax(1) - loads.amin(1)).max()) <= 1


def test_the_largest_weights_of_a_kernel_are_kept():
    size = torch.rand(1, 3, 4, 9, dtype=torch.float64)
    mask = NPB(max_per_kernel=4).choose_layer(size, torch.rand(1, 4, dtype=torch.float64), 30)
    for kept, kernel in zip(mask.view(-1, 9), size.view(-1, 9), strict=True):
        assert kept.sum() <= 4
        assert not kept.any() or kernel[kept].min() >= kernel[~kept].max()


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Flatten(),
        nn.Linear(4 * 9, 5),
    )


def masks_of(net: nn.Module, example: Tensor, **options: object) -> dict[str, Tensor]:
    weights = {name: parameter for name, parameter in net.named_parameters() if parameter.dim() > 1}
    return build_masks(weights, mask="npb", module=net, data=TrainingData(example_input=example), **options)


@pytest.mark.parametrize("sparsity", [0.2, 0.6, 0.9])
def test_masks_have_the_counts_of_the_distribution(sparsity):
    net = network()
    masks = masks_of(net, torch.randn(1, 2, 5, 5), sparsity=sparsity)
    same = build_masks({n: net.get_parameter(n) for n in masks}, sparsity=sparsity, distribution="erk")
    assert {n: int(mask.sum()) for n, mask in masks.items()} == {n: int(mask.sum()) for n, mask in same.items()}


def test_paths_are_those_of_the_masks_before():
    """Layer by layer, by hand: paths are counted by a forward of the masks on ones."""
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False)).double()
    names = {f"{layer}.weight": f"{layer}.weight" for layer in range(3)}
    counts = {"0.weight": 11, "1.weight": 9, "2.weight": 6}
    npb = NPB(alpha=0.1, beta=0.2)
    graph = trace(net.eval(), (torch.ones(1, 4, dtype=torch.float64),), {}, names)
    masks = npb.choose(graph, counts, {name: net.get_parameter(name).shape for name in names})
    paths = torch.ones(4, dtype=torch.float64)
    for name in names:
        size = net.get_parameter(name).detach().abs()[None, ..., None]
        assert torch.equal(masks[name], npb.choose_layer(size, paths.unsqueeze(0), counts[name])[0, ..., 0])
        paths = masks[name].double() @ paths


def test_deep_networks_do_not_overflow():
    """A path count of 64¹⁸⁰ is past float64; shortcuts add numbers of different size exactly."""
    net = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(180)]).double().eval()
    names = {name: name for name, _ in net.named_parameters()}
    graph = trace(net, (torch.ones(1, 64, dtype=torch.float64),), {}, names)
    masks = NPB().choose(graph, dict.fromkeys(names, 4000), dict.fromkeys(names, torch.Size((64, 64))))
    assert all(bool(mask.any(1).all() and mask.any(0).all()) for mask in masks.values())


def test_attention_and_global_are_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    with pytest.raises(ValueError, match=r"mask='npb' is undefined for 1.self_attn \(scaled_dot_product_attention\)"):
        masks_of(net, torch.randn(1, 5, 3), sparsity=0.5)
    with pytest.raises(ValueError, match="distribution='global' gives none"):
        masks_of(network(), torch.randn(1, 2, 5, 5), distribution="global")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, r"`alpha` must be in \[0, 1\], got 1.5"),
        ({"beta": -1}, "`beta` must be at least 0, got -1"),
        ({"max_per_kernel": 0}, "`max_per_kernel` must be a whole number of at least 1, got 0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        NPB(**arguments)
