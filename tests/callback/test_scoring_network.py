"""Which call of a training step is the network's, with what input; and scores on recurrent and attention networks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import masks, sparsify
from lightning_signin.masks import SCORES, ProsPr, SynFlow, TrainingData
from lightning_signin.objective.network import Network
from tests import score_references as slow
from tests.score_references import Recurrent, classify, labelled, scored


class Pair(nn.Module):
    """Tokens and numbers in, two outputs out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.numbers, self.head = nn.Embedding(7, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor, x: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = self.words(tokens).mean(1) + (0 if x is None else self.numbers(x) * scale)
        return {"logits": self.head(hidden.relu()), "tokens": tokens}


class Wrapped(nn.Module):
    """The network is a submodule; the step is not a forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.outside = net, nn.BatchNorm1d(3)

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.net(self.outside(batch[0])), batch[1])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embed, self.layers = nn.Linear(3, 8), nn.TransformerEncoder(layer, 1)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.embed(x))
        return self.head(self.attention(x, x, x)[0].mean(1))


def vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    options = {"embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3, "class_token": True}
    return timm.models.vision_transformer.VisionTransformer(img_size=8, patch_size=4, in_chans=1, **options)


def found_network(module: nn.Module, data: TrainingData) -> Network:
    seen: list[Network] = []

    def score(task) -> dict[str, Tensor]:
        seen.append(task.network())
        return {name: weight.abs() for name, weight in task.weights.items()}

    scored(module, score, data)
    return seen[0]


TOKENS, X = torch.arange(10).view(5, 2) % 7, torch.arange(15.0).view(5, 3)


@pytest.mark.parametrize(
    ("call", "args", "kwargs"),
    [
        (lambda net: net(TOKENS, X), (TOKENS[:1], X[:1]), {}),
        (lambda net: net(tokens=TOKENS, x=X), (), {"tokens": TOKENS[:1], "x": X[:1]}),
        (lambda net: net(TOKENS, x=X, scale=0.5), (TOKENS[:1],), {"x": X[:1], "scale": 0.5}),
    ],
)
def test_the_networks_call_is_recorded(call, args, kwargs):
    net = Pair()
    data = TrainingData(lambda module, batch: call(module)["logits"].square().mean(), [None])
    network = found_network(net, data)
    torch.testing.assert_close((network.args, network.kwargs), (args, kwargs), check_dtype=False, rtol=0, atol=0)
    inputs = [*network.args, *network.kwargs.values()]
    assert {value.dtype for value in inputs if isinstance(value, Tensor)} == {torch.int64, torch.float64}
    assert network.module is not net
    assert not network.module.training
    assert not any(part._forward_pre_hooks for part in network.module.modules())
    assert net.training
    assert {p.dtype for p in network.module.parameters()} == {torch.float64}
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    scores, _ = scored(net, SynFlow(iterations=2), data)
    assert list(scores) == ["numbers.weight", "head.weight"]
    assert all(score.gt(0).any() for score in scores.values())


@pytest.mark.parametrize(
    ("example", "args", "kwargs"),
    [((TOKENS, X), (TOKENS, X), {}), ({"tokens": TOKENS, "x": X}, (), {"tokens": TOKENS, "x": X})],
)
def test_an_example_input_is_the_call(example, args, kwargs):
    network = found_network(Pair(), TrainingData(example_input=example))
    torch.testing.assert_close((network.args, network.kwargs), (args, kwargs), check_dtype=False, rtol=0, atol=0)


def test_an_example_tensor_is_the_only_argument():
    x = torch.randn(2, 3)
    network = found_network(nn.Linear(3, 2), TrainingData(example_input=x))
    torch.testing.assert_close((network.args, network.kwargs), ((x.double(),), {}))


def test_token_inputs_stay_as_they_are():
    net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 3))
    scores, _ = scored(net, SynFlow(iterations=1), TrainingData(example_input=TOKENS[:1]))
    expected = net[0].weight[TOKENS[0]].flatten().abs() * net[2].weight.abs()
    torch.testing.assert_close(scores["2.weight"], expected.double().detach())


def test_a_submodule_can_be_the_network():
    net = Wrapped(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)))
    data = TrainingData(lambda module, batch: module.step(batch), [(X, TOKENS[:, 0] % 3)])
    network = found_network(net, data)
    assert type(network.module) is nn.Sequential
    assert network.names == {"net.0.weight": "0.weight", "net.2.weight": "2.weight"}
    within, _ = scored(net.net, SynFlow(iterations=3), TrainingData(example_input=X[:1]))
    scores, _ = scored(net, SynFlow(iterations=3), data)
    assert list(scores) == ["net.0.weight", "net.2.weight"]
    for name, score in scores.items():
        assert torch.equal(score, within[name.removeprefix("net.")])


def test_the_outermost_call_is_taken():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)), nn.Softmax(-1))
    network = found_network(net, TrainingData(lambda module, batch: module(batch).sum(), [X]))
    assert network.names == {"0.0.weight": "0.0.weight", "0.1.weight": "0.1.weight"}
    assert len(network.module) == 2


def test_networks_in_several_calls_are_refused():
    net = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(4, 3)})
    data = TrainingData(lambda module, batch: module["b"](module["a"](batch)).sum(), [X])
    text = "No single call in the training step runs all the selected weights, so the network's input is not known"
    with pytest.raises(ValueError, match=text):
        sparsify(net, sparsity=0.5, mask="synflow", data=data)
    assert list(masks(sparsify(net, sparsity=0.5, mask="synflow", data=data, include=["a.weight"]))) == ["a.weight"]


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError, KeyError, AssertionError])
def test_a_step_may_fail_after_the_networks_call(error):
    def loss_fn(module, batch):
        module(batch)
        raise error("no gradients here")

    net = sparsify(nn.Linear(3, 4), sparsity=0.5, mask="synflow", data=TrainingData(loss_fn, [X]))
    assert int(masks(net)["weight"].sum()) == 6


def test_a_step_that_fails_before_the_networks_call_is_one_line():
    def loss_fn(module, batch):
        raise KeyError("labels", "\n")

    text = r"The network's input is not known, since a training step cannot run: KeyError: \('labels', '\\n'\)\.$"
    with pytest.raises(ValueError, match=text):
        sparsify(nn.Linear(3, 4), mask="synflow", data=TrainingData(loss_fn, [X]))


def test_a_network_without_batches_is_refused():
    with pytest.raises(ValueError, match="There are no training batches from which to record the network's input"):
        sparsify(nn.Linear(3, 4), mask="synflow", data=TrainingData(classify, []))


@pytest.mark.parametrize("name", ["snip", "force", "grasp", "prospr", "synflow"])
@pytest.mark.parametrize(("build", "shape"), [(Recurrent, (5, 3)), (Transformer, (5, 3)), (vit, (1, 8, 8))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrent_and_attention_networks_are_scored(build, shape, name, dtype):
    net = build().to(dtype)
    data = TrainingData(classify, [(x.to(dtype), y) for x, y in labelled(shape, 2)])
    score = ProsPr(lr=0.01) if name == "prospr" else SynFlow(5) if name == "synflow" else SCORES[name]()
    found, built = scored(net, score, data, sparsity=0.5, distribution="balanced")
    assert all(part.isfinite().all() and part.any() for part in found.values())
    assert 2 * sum(int(mask.sum()) for mask in built.values()) == sum(mask.numel() for mask in built.values())
    if build is Recurrent:
        assert list(found) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]


@pytest.mark.parametrize(("build", "shape"), [(Transformer, (5, 3)), (vit, (1, 8, 8))])
def test_scores_of_attention_networks_agree_with_differences(build, shape):
    net, batches = build().double(), labelled(shape, 3)
    for module in net.modules():
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):
            module.p = module.dropout = 0.0  # the two runs of a difference must not draw
    data = TrainingData(classify, batches)
    found, _ = scored(net, SCORES["grasp"](), data)
    expected = slow.grasp_by_differences(net, classify, list(found), batches[0])
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-4, atol=1e-7 * float(score.abs().max()))
    found, _ = scored(net, ProsPr(steps=2, lr=0.1, momentum=0.5), data)
    places = {name: torch.randperm(score.numel())[:4].tolist() for name, score in found.items()}
    for name, values in slow.prospr_by_differences(net, classify, batches, places, lr=0.1, momentum=0.5).items():
        torch.testing.assert_close(found[name].flatten()[places[name]].tolist(), values, rtol=1e-3, atol=1e-8)
