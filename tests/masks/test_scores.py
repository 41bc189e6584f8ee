"""SNIP, IterativeSNIP, FORCE, GraSP and ProsPr against their definitions, on networks of several kinds."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import sparsify
from lightning_signin.masks import FORCE, SNIP, GraSP, IterativeSNIP, Magnitude, ProsPr, Random, Task, TrainingData
from tests import score_references as slow
from tests.score_references import Recurrent, Residual, Tied, classify, labelled, scored

SGD = {"lr": 0.1, "momentum": 0.7}


class Attending(nn.Module):
    """Attention by the fused function, a layer norm, and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(F.gelu(self.norm(x)).mean(1))


def close(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name].to(found[name].dtype), msg=name, **tolerance)


@pytest.fixture
def residual() -> nn.Module:
    return Residual().double()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    return labelled((2, 4, 4), 4)


@pytest.mark.parametrize("number", [1, 3])
def test_snip_is_the_gradient_of_gates(residual, batches, number):
    found, _ = scored(residual, SNIP(num_batches=number), TrainingData(classify, batches))
    names, values = slow.selected(residual), slow.parameters(residual)
    gates = slow.differentiate(slow.residual_loss, values, names, batches[:number])
    assert names == ["stem.weight", "branch.weight", "shortcut.weight", "head.weight"]
    close(found, {name: gate.abs() for name, gate in gates.items()})


def test_short_data_starts_anew(residual, batches):
    cycled, _ = scored(residual, SNIP(num_batches=5), TrainingData(classify, batches[:2]))
    written, _ = scored(residual, SNIP(num_batches=5), TrainingData(classify, [*batches[:2], *batches[:2], batches[0]]))
    close(cycled, written, rtol=0, atol=0)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize(("score", "back"), [(IterativeSNIP(steps=4), False), (FORCE(steps=4), True)])
def test_iterations_go_on_from_the_pruned_network(residual, batches, score, back, sparsity):
    _, masks = scored(residual, score, TrainingData(classify, batches), sparsity=sparsity)
    names, values = slow.selected(residual), slow.parameters(residual)
    expected = slow.iterative(slow.residual_loss, values, names, batches, 1 - sparsity, 4, back)
    close(masks, expected)


def test_iterations_of_one_step_are_snip(residual, batches):
    data = TrainingData(classify, batches)
    snip, _ = scored(residual, SNIP(num_batches=2), data)
    for score in (IterativeSNIP(steps=1, num_batches=2), FORCE(steps=1, num_batches=2)):
        close(scored(residual, score, data)[0], snip)


def test_iterations_prune_for_good_and_force_does_not(residual, batches):
    data = TrainingData(classify, batches)

    def kept_on_the_way(score):
        kept = []
        for steps in range(1, 5):  # up to step k of 4 the run is the same as at the sparsity of that step
            densities = 0.1 ** (steps / 4)
            _, masks = scored(residual, score(steps=steps), data, sparsity=1 - densities)
            kept.append(torch.cat([mask.flatten() for mask in masks.values()]))
        return kept

    for earlier, later in zip(kept_on_the_way(IterativeSNIP), kept_on_the_way(IterativeSNIP)[1:], strict=False):
        assert not (later & ~earlier).any()
    assert any((b & ~a).any() for a, b in zip(kept_on_the_way(FORCE), kept_on_the_way(FORCE)[1:], strict=False))


def test_what_was_pruned_ranks_below_scores_of_zero():
    net = nn.Linear(4, 1, bias=False)
    nn.init.ones_(net.weight)
    gradients = [torch.tensor([1.0, 2.0, 5.0, 6.0]), torch.tensor([9.0, 9.0, 0.0, 0.0])]
    data = TrainingData(lambda module, batch: (module.weight * batch).sum(), gradients)
    with pytest.warns(UserWarning, match="cannot rank weights of weight, since their scores are zero"):
        _, masks = scored(net, IterativeSNIP(steps=2), data, sparsity=0.75)
    assert masks["weight"].tolist() in ([[False, False, True, False]], [[False, False, False, True]])
    _, masks = scored(net, FORCE(steps=2), data, sparsity=0.75)
    assert masks["weight"].tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("number", [1, 2])
def test_grasp_is_the_written_out_hessian_product(residual, batches, number):
    found, masks = scored(residual, GraSP(num_batches=number), TrainingData(classify, batches))
    names, values = slow.selected(residual), slow.parameters(residual)
    expected = slow.grasp(slow.residual_loss, values, names, batches[:number])
    close(found, expected)
    close(masks, slow.best(expected, 192))  # of 384: the highest are kept


@pytest.mark.parametrize(("network", "shape"), [(Recurrent, (5, 3)), (Attending, (5, 4)), (Tied, (4,))])
def test_grasp_agrees_with_differences_of_gradients(network, shape):
    net, batches = network().double(), labelled(shape, 1)
    found, _ = scored(net, GraSP(), TrainingData(classify, batches))
    close(found, slow.grasp_by_differences(net, classify, list(found), batches[0]), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("network", "shape"), [(Residual, (2, 4, 4)), (Recurrent, (5, 3)), (Attending, (5, 4)), (Tied, (4,))]
)
def test_prospr_agrees_with_training_at_moved_gates(network, shape):
    net, batches = network().double(), labelled(shape, 4)
    found, _ = scored(net, ProsPr(steps=3, **SGD), TrainingData(classify, batches))
    places = {name: torch.randperm(score.numel())[:8].tolist() for name, score in found.items()}
    expected = slow.prospr_by_differences(net, classify, batches, places, **SGD)
    for name, values in expected.items():
        torch.testing.assert_close(found[name].flatten()[places[name]].tolist(), values, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("part", ["lstm.weight_hh_l0", "head.bias"])
def test_prospr_leaves_frozen_parameters_where_they_are(part):
    net, batches = Recurrent().double(), labelled((5, 3), 3)
    data, score = TrainingData(classify, batches), ProsPr(steps=2, **SGD)
    free, _ = scored(net, score, data)
    net.get_parameter(part).requires_grad_(False)
    found, _ = scored(net, score, data)
    assert not torch.allclose(found["head.weight"], free["head.weight"], rtol=1e-6)  # it did move
    expected = slow.prospr_by_differences(net, classify, batches, {"head.weight": range(12)}, **SGD)
    torch.testing.assert_close(found["head.weight"].flatten().tolist(), expected["head.weight"], rtol=1e-4, atol=1e-8)


def test_snip_adds_the_uses_of_a_tied_weight():
    net, batches = Tied().double(), labelled((4,), 1)
    found, _ = scored(net, SNIP(), TrainingData(classify, batches))
    classify(net, batches[0]).backward()
    assert list(found) == ["first.weight", "head.weight"]
    close(found, {name: (p.grad * p).abs().detach() for name in found for p in [net.get_parameter(name)]})


def test_eval_mode_is_kept_while_scoring(residual, batches):
    data = TrainingData(classify, batches)
    training, _ = scored(residual, SNIP(), data)
    found, _ = scored(residual.eval(), SNIP(), data)
    classify(residual, batches[0]).backward()
    close(found, {name: (p.grad * p).abs().detach() for name in found for p in [residual.get_parameter(name)]})
    assert not torch.allclose(found["stem.weight"], training["stem.weight"], rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("score", [SNIP(num_batches=3), GraSP(num_batches=3), FORCE(steps=3)])
def test_half_precision_gradients_are_averaged_in_more(score, dtype):
    net, batches = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double(), labelled((4,), 3)
    exact, _ = scored(net, score, TrainingData(classify, batches))
    halves = [(x.to(dtype), y) for x, y in batches]
    found, _ = scored(net.to(dtype), score, TrainingData(classify, halves))
    for name, values in found.items():
        assert values.dtype in (torch.float32, torch.float64)
        if not isinstance(score, FORCE):  # whose masks on the way may differ
            error = (values - exact[name]).norm() / exact[name].norm()
            assert error < 0.1, name


def test_weights_with_one_gradient_are_scored_apart():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return (self.a + self.b) * x

    net, x = Sum(), torch.randn(3, 4)
    expected = {"a": (x * net.a).abs().detach(), "b": (x * net.b).abs().detach()}
    found: dict[str, Tensor] = {}

    def score(task: Task) -> dict[str, Tensor]:
        found.update(SNIP(num_batches=2)(task))
        return found

    data = TrainingData(lambda module, batch: module(batch).sum(), [x, x])
    sparsify(net, sparsity=0.5, mask=score, include=["a", "b"], data=data)
    close(found, expected)


def test_random_and_magnitude_look_at_weights_alone(residual):
    found, _ = scored(residual, Magnitude(), TrainingData())
    close(found, {name: residual.get_parameter(name).detach().abs() for name in found})
    drawn, _ = scored(residual, Random(), TrainingData())
    generator = torch.Generator().manual_seed(0)
    for name, values in drawn.items():
        shape = residual.get_parameter(name).shape
        assert torch.equal(values, torch.rand(shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: SNIP(num_batches=0), "`num_batches` must be a whole number of at least 1, got 0"),
        (lambda: GraSP(num_batches=1.5), "`num_batches` must be a whole number of at least 1, got 1.5"),
        (lambda: FORCE(steps=-1), "`steps` must be a whole number of at least 1, got -1"),
        (lambda: ProsPr(steps=0), "`steps` must be a whole number of at least 1, got 0"),
        (lambda: ProsPr(lr=0.0), "`lr` must be above 0, got 0.0"),
        (lambda: ProsPr(momentum=1.0), r"`momentum` must be in \[0, 1\), got 1.0"),
    ],
)
def test_scores_refuse_arguments_out_of_range(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_random_scores_are_equal_however_often_and_in_whatever_order_they_are_asked_for(residual):
    asked: list = []

    def twice(task):
        scores = Random()(task)
        asked.append(dict(scores))
        asked.append({name: scores[name] for name in reversed(list(scores))})
        return scores

    sparsify(residual, mask=twice)
    assert len(asked[0]) > 2
    assert all(torch.equal(asked[0][name], asked[1][name]) for name in asked[0])
