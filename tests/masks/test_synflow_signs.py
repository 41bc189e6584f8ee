"""SynFlow where the flow has signs: LayerNorm, GELU, SiLU, attention; outputs with a loss; inputs that are checked."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import sparsify
from lightning_signin.masks import SynFlow, TrainingData, build_masks
from lightning_signin.masks.scores import IterativeSNIP
from tests import score_references as slow
from tests.score_references import classify, labelled, scored


class Attending(nn.Module):
    """A transformer block of linear layers alone: attention, LayerNorm, GELU."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(3, width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Linear(width, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(self.norms[1](x))))).mean(1))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 20), nn.LayerNorm(20), nn.GELU(), nn.Linear(20, 20), nn.GELU(), nn.Linear(20, 4))


def silu() -> nn.Module:
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.SiLU(), nn.Conv2d(6, 6, 3), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 3))


NETWORKS = pytest.mark.parametrize(
    ("build", "shape"), [(normed, (6,)), (silu, (2, 4, 4)), (Attending, (5, 3))], ids=["norm", "silu", "attention"]
)


@NETWORKS
@pytest.mark.parametrize("sparsity", ["0.5", "0.9"])
def test_masks_are_those_of_the_absolute_flow(build, shape, sparsity):
    net, x = build().double(), torch.randn(1, *shape)
    names = slow.selected(net)
    _, built = scored(net, SynFlow(iterations=30), TrainingData(example_input=x), sparsity=float(sparsity))
    expected = slow.synflow(net, x, names, 1 - Fraction(sparsity), 30)[-1]
    assert all(mask.any() for mask in expected.values())
    for name in names:
        assert torch.equal(built[name], expected[name]), name


def masks_on_the_way(net, score, data, **options) -> list[dict[str, Tensor]]:
    seen = []

    def watched(task):
        select = task.select

        def noted(*args, **kwargs):
            seen.append(select(*args, **kwargs))
            return seen[-1]

        task.select = noted
        return score(task)

    _, last = scored(net, watched, data, **options)
    return [*seen, last]


@NETWORKS
@pytest.mark.parametrize("distribution", ["global", "erk", "uniform"])
@pytest.mark.parametrize("score", [SynFlow(iterations=40), IterativeSNIP(steps=20)])
def test_what_an_iteration_pruned_stays_pruned(build, shape, distribution, score):
    net = build().double()
    data = TrainingData(classify, labelled(shape, 3)) if isinstance(score, IterativeSNIP) else None
    data = data or TrainingData(example_input=torch.randn(1, *shape))
    steps = masks_on_the_way(net, score, data, sparsity=0.9, distribution=distribution)
    assert len(steps) in (20, 40)
    for earlier, later in pairwise(steps):
        for name in later:
            assert not (later[name] & ~earlier[name]).any(), name


@pytest.mark.parametrize(
    ("shapes", "steps"),
    [
        ([(3, 26), (3, 17), (28, 30), (2, 3), (8, 5)], 20),  # the share of the fourth is 2 weights of 453, and 3 of 404
        ([(4, 1), (8, 3), (8, 7), (7, 8), (2, 7)], 10),  # that of the last is 1 weight of 19, and 2 of 15 at the end
    ],
)
def test_rounding_alone_brings_no_weight_back(shapes, steps):
    net = nn.ParameterList(nn.Parameter(torch.rand(shape, dtype=torch.float64)) for shape in shapes)
    data = TrainingData(lambda module, batch: sum((p * p).sum() for p in module), [None])
    options = {"sparsity": 0.9, "distribution": "uniform"}
    found = []

    def iterated(task):
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in task.weights.items()}
        for step in range(1, steps):
            scores = {name: weight.where(masks[name], -1.0) for name, weight in task.weights.items()}
            masks = task.select(scores, step / steps, within=masks)
            found.append(masks)
        return {name: weight.where(masks[name], -1.0) for name, weight in task.weights.items()}

    last = build_masks(dict(net.named_parameters()), mask=iterated, module=net, data=data, **options)
    for earlier, later in zip(found, [*found[1:], last], strict=True):
        assert not any((later[name] & ~earlier[name]).any() for name in last)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class Computes(nn.Module):
    """A network that is called with its targets, and returns a loss with the logits in some kind of container."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = normed(), kind

    def forward(self, x: Tensor, labels: Tensor | None = None) -> object:
        logits = self.net(x)
        loss = None if labels is None else 1000 * F.cross_entropy(logits, labels)
        if self.kind == "model output":
            outputs = pytest.importorskip("transformers.modeling_outputs")
            return outputs.SequenceClassifierOutput(loss=loss, logits=logits)
        return {"tuple": (loss, logits), "dict": {"loss": loss, "logits": logits}, "class": Output(loss, logits)}[
            self.kind
        ]


@pytest.mark.parametrize("kind", ["tuple", "dict", "class", "model output"])
def test_a_loss_beside_the_logits_is_no_flow(kind):
    net, (x, y) = Computes(kind), labelled((6,), 1)[0]
    with_loss, _ = scored(net, SynFlow(2), TrainingData(example_input={"x": x[:1], "labels": y[:1]}))
    without, _ = scored(net, SynFlow(2), TrainingData(example_input=x[:1]))
    for name in without:
        assert torch.equal(with_loss[name], without[name])


def test_a_network_that_returns_one_number_has_a_flow():
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = normed()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).sum()

    net, x = Single(), torch.randn(1, 6)
    single, _ = scored(net, SynFlow(2), TrainingData(example_input=x))
    inner, _ = scored(net.net, SynFlow(2), TrainingData(example_input=x))
    for name in inner:
        torch.testing.assert_close(single[f"net.{name}"], inner[name])


class Checked(nn.Module):
    """Its inputs must not be ones: boxes that have a size, probabilities that sum to one, an assertion of a range."""

    def __init__(self, check) -> None:
        super().__init__()
        self.net, self.check = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), check

    def forward(self, x: Tensor) -> Tensor:
        if not self.check(x):
            raise AssertionError("All bounding boxes should have positive height and width.\nFound others.")
        return self.net(x)


CHECKS = [
    lambda x: (x[:, 2:] > x[:, :2]).all(),
    lambda x: torch.allclose(x.sum(1), x.new_ones(1)),
    lambda x: x.std() > 0,
]
EXAMPLE = torch.tensor([[0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize("check", CHECKS)
def test_networks_that_refuse_ones_get_their_own_example(check):
    net, data = Checked(check), TrainingData(example_input=EXAMPLE)
    with pytest.warns(UserWarning, match="mask='synflow': the network refuses an input of ones, .* example's own val"):
        sparsify(net, sparsity=0.5, mask="synflow", data=data)
    net = Checked(check)
    with pytest.warns(UserWarning, match="refuses an input of ones"):
        found, _ = scored(net, SynFlow(1), data)
    first, last = slow.positive(net).net[::2]
    hidden = first(EXAMPLE.double()).relu()
    torch.testing.assert_close(found["net.2.weight"], hidden * last.weight.detach())


def test_networks_that_run_with_no_input_are_refused_in_words():
    net, data = Checked(lambda x: False), TrainingData(example_input=EXAMPLE)
    text = (
        r"^mask='synflow' cannot run the network in eval mode, neither with an input of ones nor with the example's "
        r"own values, in float64 or float32 "
        r"\(AssertionError: All bounding boxes should have positive height and width\)\. "
        r"Pass an input that its forward takes, as the module's `example_input_array` or in TrainingData\("
    )
    with pytest.raises(ValueError, match=text) as caught:
        sparsify(net, mask="synflow", data=data)
    assert "\n" not in str(caught.value)


class Casts(nn.Linear):
    """To float32 on the way, as the scan of Mamba and many kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Makes(nn.Linear):
    """A mask in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(torch.ones(4, 4, dtype=torch.float32), super().forward(x).unsqueeze(2))


@pytest.mark.parametrize("kind", [Casts, Makes])
def test_networks_that_need_single_precision_get_it(kind):
    net, data = nn.Sequential(nn.Linear(4, 4), kind(4, 4), nn.Flatten()), TrainingData(example_input=torch.ones(1, 4))
    with pytest.warns(UserWarning, match="the network does not run in float64, so it is scored in float32"):
        found, _ = scored(net, SynFlow(20), data)
    plain = nn.Sequential(net[0], nn.Linear(4, 4))
    plain[1].weight, plain[1].bias = net[1].weight, net[1].bias
    expected, _ = scored(plain, SynFlow(20), data)
    times = 4 if kind is Makes else 1
    for name in found:
        torch.testing.assert_close(found[name], times * expected[name], rtol=1e-4, atol=1e-12)
    assert torch.get_default_dtype() == torch.float32


def test_flows_beyond_single_precision_are_refused_where_double_does_not_run():
    net = nn.Sequential(*(part for _ in range(30) for part in (nn.Linear(64, 64), nn.ReLU())), Casts(64, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(8)
    data = TrainingData(example_input=torch.ones(1, 64))
    with (
        pytest.warns(UserWarning, match="scored in float32"),
        pytest.raises(ValueError, match=r"mask='synflow': the flow is inf\. Check that the weights are finite"),
    ):
        sparsify(net, mask="synflow", data=data)


def test_networks_without_numbers_or_gradients_are_refused():
    class Labels(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    data = TrainingData(example_input=torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"\(TypeError: its forward returns no tensor of floating-point numbers\)"):
        sparsify(Labels(4, 3), mask="synflow", data=data)
    with pytest.raises(ValueError, match=r"mask='synflow' is undefined for weight: in eval mode .* does not depend on"):
        sparsify(Detached(4, 3), mask="synflow", data=data)
