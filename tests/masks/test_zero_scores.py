"""Scores of exactly zero: where layers compete an error that names the layers, else chance with a warning."""

import re
import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_signin import masks, sparsify
from lightning_signin.masks import FORCE, SNIP, GraSP, IterativeSNIP, ProsPr, SynFlow, TrainingData, build_masks
from lightning_signin.masks.zeros import at_random
from tests.score_references import classify, labelled

SCORES = {
    "snip": SNIP(),
    "iterative-snip": IterativeSNIP(steps=3),
    "force": FORCE(steps=3),
    "grasp": GraSP(),
    "prospr": ProsPr(steps=1, lr=0.1),
    "synflow": SynFlow(iterations=4),
}
SILENT = "cannot rank weights of {}, since their scores are zero: the choice is random"


class Branches(nn.Module):
    """Residual branches that begin at zero, by what is at their ends."""

    def __init__(self, number: int, end: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(number))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(number))
        self.scales = nn.ParameterList(nn.Parameter(torch.zeros(8 if end == "scale" else ())) for _ in range(number))
        self.end = end
        if end == "norm":
            for norm in self.norms:
                nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch, norm, scale in zip(self.branches, self.norms, self.scales, strict=True):
            x = x + (norm(branch(x)) if self.end == "norm" else scale * branch(x))
        return self.head(x)


class Aside(nn.Module):
    """A part that feels nothing: a head that is never called, a teacher without gradients, units that never fire."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        act = nn.ReLU() if kind == "dead units" else nn.Tanh()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), act, nn.Linear(16, 3))
        self.aside, self.kind = nn.Linear(4, 48), kind
        if kind == "dead units":
            nn.init.constant_(self.net[2].bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if self.kind == "teacher":
            with torch.no_grad():
                taught = self.aside(x).unflatten(1, (3, 16)).mean(2)
            logits = logits + taught
        return logits


def data_of() -> TrainingData:
    return TrainingData(classify, labelled((4,), 4))


def zero_layers(net: nn.Module, kind: str) -> list[str]:
    if isinstance(net, Branches):
        return [f"branches.{i}.{part}.weight" for i in range(len(net.branches)) for part in (0, 2)]
    return [f"net.{part}.weight" for part in (0, 2, 4)] if kind == "dead units" else ["aside.weight"]


NETWORKS = {
    "norm": lambda: Branches(4, "norm"),
    "scale": lambda: Branches(2, "scale"),
    "number": lambda: Branches(1, "number"),
    "unused head": lambda: Aside("unused head"),
    "teacher": lambda: Aside("teacher"),
}
EVERY_NETWORK = pytest.mark.parametrize("kind", NETWORKS)
EVERY_SCORE = pytest.mark.parametrize("name", SCORES)


def is_cut(kind: str, name: str) -> bool:
    return name == "synflow" and kind in ("unused head", "teacher")  # an error of its own, for any distribution


def feels(kind: str, name: str) -> bool:
    return name == "prospr" and kind in ("norm", "scale", "number")  # after a step the branches are not zero any more


@EVERY_SCORE
@EVERY_NETWORK
def test_layers_without_a_score_cannot_compete(kind, name):
    net = NETWORKS[kind]().double()
    if feels(kind, name):
        assert sparsify(net, sparsity=0.5, mask=SCORES[name], distribution="global", data=data_of()) is net
        return
    layers = zero_layers(net, kind)
    more = f" and {len(layers) - 5} more" if layers[5:] else ""
    text = re.escape(f"cannot choose in {', '.join(layers[:5])}{more}: their scores are all zero, and distribution=")
    if is_cut(kind, name):
        text = "is undefined for aside.weight: in eval mode the network's output does not depend on it"
    with pytest.raises(ValueError, match=text) as caught:
        sparsify(net, sparsity=0.5, mask=SCORES[name], distribution="global", data=data_of())
    if not is_cut(kind, name):
        for way in ("`zero_init_last=False`", f"exclude=['{layers[0]}'", "mask='random'", "distribution='erk'"):
            assert way in str(caught.value)
    assert set(net.state_dict()) == {n for n, _ in net.named_parameters()}  # it is plain still


@EVERY_SCORE
@EVERY_NETWORK
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_layers_without_a_score_are_chosen_by_chance_where_they_have_a_count(kind, name, distribution):
    if is_cut(kind, name) or feels(kind, name):
        pytest.skip("an error of its own, or no error")
    net = NETWORKS[kind]().double()
    layers, found = zero_layers(net, kind), []
    weights = {n: p for n, p in net.named_parameters() if p.ndim == 2}
    options = {"sparsity": 0.5, "mask": SCORES[name], "distribution": distribution, "module": net, "data": data_of()}
    shown = ", ".join(layers[:5]) + (f" and {len(layers) - 5} more" if layers[5:] else "")
    for seed in (1, 1, 2):
        with pytest.warns(UserWarning, match=re.escape(SILENT.format(shown))):
            found.append(build_masks(weights, seed=seed, **options))
    random = build_masks(weights, sparsity=0.5, distribution=distribution)
    for weight, mask in found[0].items():
        assert int(mask.sum()) == int(random[weight].sum())  # the counts are those of the distribution
        assert torch.equal(mask, found[1][weight])
        if weight in layers:
            assert not torch.equal(mask, found[2][weight])
        elif kind != "teacher":  # what chance leaves of it changes the iterations of the others
            assert torch.equal(mask, found[2][weight])
    last = found[0][layers[0]].flatten()
    assert last[len(last) // 2 :].any()  # not the first half


@EVERY_SCORE
def test_weights_of_dead_units_cannot_compete(name):
    net = Aside("dead units").double()
    layers = ["net.0.weight", "net.2.weight", "net.4.weight"]
    options = {"sparsity": 0.5, "exclude": ["aside.weight"], "data": data_of(), "distribution": "global"}
    if name == "synflow":  # there are no negative biases
        assert sparsify(net, mask=SCORES[name], **options) is net
        return
    text = "loss depends on none of|linear in the selected weights|cannot choose in " + ", ".join(layers)
    with pytest.raises(ValueError, match=text):
        sparsify(net, mask=SCORES[name], **options)


def test_synflow_says_so_before_its_iterations():
    net, calls = Branches(1, "norm"), []
    net.stem.register_forward_hook(lambda *args: calls.append(args))
    with pytest.raises(ValueError, match="their scores are all zero"):
        sparsify(net, mask="synflow", data=TrainingData(example_input=torch.ones(1, 4)))
    assert len(calls) <= 3


def test_resnets_of_timm_are_refused_unless_their_branches_begin():
    timm = pytest.importorskip("timm")
    data = TrainingData(classify, [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))])
    net = timm.create_model("resnet18", num_classes=3)
    with pytest.raises(
        ValueError, match=r"cannot choose in layer1\.0\.conv1\.weight, .* and 11 more: their scores are"
    ):
        sparsify(net, mask="snip", data=data)
    net = timm.create_model("resnet18", num_classes=3, zero_init_last=False)
    assert all(mask.sum() > 1 for mask in masks(sparsify(net, sparsity=0.7, mask="snip", data=data)).values())


def zeros_in(net: nn.Module, name: str, share: float) -> nn.Module:
    weight = net.get_parameter(name)
    with torch.no_grad():
        weight.view(-1)[: round(share * weight.numel())] = 0
    return net


@pytest.mark.parametrize("name", ["net.4.weight", "net.2.weight"])  # a head and a LoRA's B that begin at zero
def test_weights_of_zero_have_no_magnitude(name):
    net = zeros_in(Aside("none"), name, 1.0)
    with pytest.raises(ValueError, match=rf"mask='magnitude' cannot choose in {name}: their scores are all zero"):
        sparsify(net, sparsity=0.5, mask="magnitude")
    with pytest.warns(UserWarning, match=SILENT.format(name)):
        sparsify(net, sparsity=0.5, mask="magnitude", distribution="uniform", exclude=["aside.weight"])


def test_fewer_scores_than_weights_to_keep_are_refused():
    net = zeros_in(Aside("none"), "net.2.weight", 0.9)  # 230 of 560
    text = "cannot choose in net.2.weight: many scores are zero: 330 are not, and 336 weights are to be kept"
    with pytest.raises(ValueError, match=text):
        sparsify(net, sparsity=0.4, mask="magnitude")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(net, sparsity=0.7, mask="magnitude")


def test_dead_units_matter_only_where_their_weights_are_needed():
    net = Aside("dead units").double()
    with torch.no_grad():
        net.net[2].bias[8:] = 100  # 8 of 16 units never fire: 128 + 24 of 368 weights have no gradient
    options = {"mask": "snip", "exclude": ["aside.weight"], "data": data_of()}
    with pytest.raises(ValueError, match="many scores are zero: 216 are not, and 258 weights are to be kept"):
        sparsify(net, sparsity=0.3, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "No path from input")
        sparsify(net, sparsity=0.5, **options)


@EVERY_SCORE
def test_no_choice_is_no_error(name):
    net = Branches(2, "norm").double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(net, sparsity=0.0, mask=SCORES[name], distribution="global", data=data_of())


def test_layers_that_are_kept_whole_are_no_error():
    net = Branches(1, "norm").double()
    whole = {"branches*": 0.0, "*": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = masks(sparsify(net, mask="snip", distribution=whole, data=data_of()))
    assert found["branches.0.0.weight"].all()


def silent(task) -> dict[str, Tensor]:
    return {name: torch.zeros_like(weight) for name, weight in task.weights.items()}


def constant(task) -> dict[str, Tensor]:
    return {name: torch.ones_like(weight) for name, weight in task.weights.items()}


def test_users_scores_of_zero_are_refused_and_equal_ones_are_not():
    net = Branches(1, "norm")
    with pytest.raises(ValueError, match=r"silent' cannot choose in stem\.weight, .*: their scores are all zero"):
        sparsify(net, mask=silent, distribution="global")
    with pytest.warns(UserWarning, match=SILENT.format("stem.weight, head.weight, branches.0.0.weight, branch.*")):
        build_masks({n: p for n, p in net.named_parameters() if p.ndim == 2}, mask=silent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = masks(sparsify(net, mask=constant, sparsity=0.5, distribution="uniform"))
    assert all(torch.equal(mask.flatten(), torch.arange(mask.numel()) < mask.numel() / 2) for mask in found.values())


@pytest.mark.parametrize("structure", ["2:4", "1:4-cap", "4x4-block", "constant-fan-in"])
def test_chance_chooses_within_the_structure(structure):
    weights = {"a": torch.randn(16, 16), "b": torch.zeros(16, 16)}
    options = {"sparsity": 0.75, "mask": "magnitude", "distribution": "uniform", "structure": structure}
    with pytest.warns(UserWarning, match=SILENT.format("b")):
        found = build_masks(weights, **options)
    with pytest.warns(UserWarning, match=SILENT.format("b")):
        other = build_masks(weights, seed=1, **options)
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"a": 64, "b": 64}
    assert torch.equal(found["a"], other["a"])
    assert not torch.equal(found["b"], other["b"])
    mask = found["b"]
    blocks = mask.view(4, 4, 4, 4).transpose(1, 2).flatten(2).sum(2)
    groups = mask.view(16, 4, 4).sum(2)
    assert {
        "2:4": torch.isin(groups, torch.tensor([0, 2])).all(),
        "1:4-cap": groups.le(1).all(),
        "4x4-block": torch.isin(blocks, torch.tensor([0, 16])).all(),
        "constant-fan-in": mask.sum(1).eq(4).all(),
    }[structure]


def test_every_weight_has_the_same_chance():
    weights, drawn = {"a": torch.zeros(40)}, torch.zeros(40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(400):
            drawn += build_masks(weights, sparsity=0.75, mask="magnitude", distribution="erk", seed=seed)["a"]
    expected = 400 / 4  # of each weight; the standard deviation is √(400 · 3/16) = 8.7
    assert (drawn - expected).abs().max() < 4.5 * 8.7


def test_zeros_rank_between_what_is_above_and_what_was_pruned():
    least = torch.finfo(torch.float64).tiny
    score = torch.tensor([1e-300, 0.0, -least, 1e-38, 0.0, -1.0, -0.0], dtype=torch.float64)
    found = at_random({"a": score}, torch.Generator().manual_seed(0))["a"]
    order = found.argsort(descending=True).tolist()
    assert order[:2] == [3, 0]
    assert set(order[2:5]) == {1, 4, 6}
    assert order[5:] == [2, 5]


@pytest.mark.parametrize("mask", [SNIP(), IterativeSNIP(steps=3), FORCE(steps=3)])
def test_scores_that_are_not_a_number_name_their_layer(mask):
    class Roots(nn.Module):
        """The gradient of √0 is infinite, times 0 it is NaN, while the loss is finite."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + (self.second(x) * 0).sqrt()

    with pytest.raises(
        ValueError, match=r"gave NaN scores for 'second\.weight'\. Check that its weights are finite, and its grad"
    ):
        sparsify(Roots(), mask=mask, data=data_of_floats())


def test_scores_that_are_not_a_number_on_the_way_name_their_layer():
    """Afterwards the weights are pruned, and nobody would know."""

    def loss(module: nn.Module, batch: int) -> Tensor:
        squares = (module[0].weight * (batch != 1)).square().sum(1)
        return squares.sqrt().sum() + module[1].weight.sum() if batch == 1 else squares.sum() + module[1].weight.sum()

    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"gave NaN scores for '0\.weight'\. Check that its weights are finite"):
        sparsify(net, mask=IterativeSNIP(steps=3), sparsity=0.5, data=TrainingData(loss, [0, 1, 2]))


def data_of_floats() -> TrainingData:
    return TrainingData(classify, [(x.float(), y) for x, y in labelled((4,), 3)])
