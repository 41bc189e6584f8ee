"""What every score has to do, and what it must leave alone; one table, `SCORES`."""

import copy
import gc
import random
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_signin import masks, merge_, sparsify
from lightning_signin.masks import SCORES, SNIP, TrainingData
from tests.score_references import classify, labelled, scored

TRAINING = ["snip", "iterative-snip", "force", "grasp", "prospr"]  # these need a loss
EVERY_SCORE = pytest.mark.parametrize("name", SCORES)
EVERY_TRAINING_SCORE = pytest.mark.parametrize("name", TRAINING)


class Descending:
    """A user's score: earlier weights are better."""

    distribution = "uniform"

    def __call__(self, task) -> dict[str, Tensor]:
        return {n: -torch.arange(w.numel(), dtype=torch.float).view(w.shape) for n, w in task.weights.items()}


def ascending(task) -> dict[str, Tensor]:
    return {name: -score for name, score in Descending()(task).items()}


def noisy_loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    x = x * torch.rand(1, dtype=x.dtype) * np.random.rand() * random.random() + x
    return classify(module, (x, y))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    features = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double()


@pytest.fixture
def data() -> TrainingData:
    samples = [(x[0], y[0]) for x, y in labelled((2, 4, 4), 24, size=1)]
    return TrainingData(noisy_loss, DataLoader(samples, batch_size=8, shuffle=True))


def generators() -> tuple:
    _, keys, *rest = np.random.get_state(legacy=True)
    return torch.get_rng_state().tolist(), keys.tolist(), rest, random.getstate()


@EVERY_SCORE
def test_score_gives_one_finite_number_for_each_weight(name, data):
    net = network()
    found, _ = scored(net, SCORES[name](), data)
    assert {name: score.shape for name, score in found.items()} == {
        f"{place}.weight": net[place].weight.shape for place in (0, 5, 7)
    }
    for score in found.values():
        assert score.is_floating_point()
        assert score.isfinite().all()
        assert not score.requires_grad
        assert score.unique().numel() > 1


@EVERY_SCORE
def test_score_leaves_the_module_alone(name, data):
    net = network()
    net[3].eval()
    net[7].bias.requires_grad_(False)
    net[0].bias.grad, net[5].weight.grad = torch.ones(4).double(), torch.ones(8, 16).double()

    def seen() -> list:
        own = [(n, id(p), p._version, p.requires_grad, p.grad is not None) for n, p in net.named_parameters()]
        hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules()]
        return [own, hooks, [part.training for part in net.modules()], list(net.__dict__)]

    before, values = seen(), copy.deepcopy(net.state_dict())
    scored(net, SCORES[name](), data)
    assert seen() == before
    torch.testing.assert_close(net.state_dict(), values, rtol=0, atol=0)
    assert all(grad.eq(1).all() for grad in (net[0].bias.grad, net[5].weight.grad))


@EVERY_SCORE
def test_sparsify_with_a_score_only_masks(name, data):
    net = network()
    biases, modes = [net[0].bias, net[1].bias], [part.training for part in net.modules()]
    values, drawn = copy.deepcopy(net.state_dict()), generators()
    sparsify(net, sparsity=0.5, mask=name, data=data, parametrization="plain")
    assert generators() == drawn
    expected = {n: value * masks(net)[n] if n in masks(net) else value for n, value in values.items()}
    torch.testing.assert_close(net.state_dict(), expected, rtol=0, atol=0)
    assert biases[0] is net[0].bias
    assert biases[1] is net[1].bias
    assert [part.training for part in merge_(net).modules()] == modes


@EVERY_SCORE
def test_score_is_the_same_again_and_without_gradients(name, data):
    first = masks(sparsify(network(), sparsity=0.7, mask=name, data=data))
    again = masks(sparsify(network(), sparsity=0.7, mask=SCORES[name](), data=data))
    with torch.no_grad():
        graph_less = masks(sparsify(network(), sparsity=0.7, mask=name, data=data))
    for weight in first:
        assert torch.equal(first[weight], again[weight])
        assert torch.equal(first[weight], graph_less[weight])


@EVERY_SCORE
def test_score_lets_go_of_its_copies(name, data):
    copies: list[weakref.ref] = []

    class Watched(TrainingData):
        def copy(self, module: nn.Module) -> nn.Module:
            made = super().copy(module)
            copies.extend(weakref.ref(part) for part in [made, *made.parameters()])
            return made

    net = sparsify(network(), sparsity=0.5, mask=name, data=Watched(data.loss_fn, data.batches))
    gc.collect()
    assert net is not None
    assert not any(ref() is not None for ref in copies)
    assert copies or name in ("random", "magnitude")


@EVERY_SCORE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_can_be_scored(name, dtype):
    batches = [(x.to(dtype), y) for x, y in labelled((2, 4, 4), 2)]
    score = SCORES[name](lr=0.01) if name == "prospr" else SCORES[name]()
    found, built = scored(network().to(dtype), score, TrainingData(classify, batches))
    assert all(score.isfinite().all() for score in found.values())
    assert sum(int(mask.sum()) for mask in built.values()) == 112  # of 224


@EVERY_TRAINING_SCORE
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_score_refuses_a_loss_that_is_not_finite(name, value, data):
    broken = TrainingData(lambda module, batch: classify(module, batch) * value, data.batches)
    text = rf"The training loss is {value} while scoring with mask='{name}'\. Check the data and the initial weights"
    with pytest.raises(ValueError, match=text):
        sparsify(network(), mask=name, data=broken)


@EVERY_TRAINING_SCORE
def test_score_refuses_an_end_of_data_before_it_began(name):
    with pytest.raises(ValueError, match=f"mask='{name}' needs training batches, and there are none"):
        sparsify(network(), mask=name, data=TrainingData(classify, []))


@EVERY_TRAINING_SCORE
def test_score_refuses_data_without_a_loss(name, data):
    with pytest.raises(ValueError, match=r"needs the training loss: pass data=TrainingData\(loss_fn, batches\)"):
        sparsify(network(), mask=name, data=TrainingData(batches=data.batches))


@pytest.mark.parametrize("name", [*TRAINING, "synflow", "phew", "npb"])
def test_score_refuses_to_do_without_data(name):
    net = network()
    with pytest.raises(ValueError, match=f"mask='{name}' needs the training loss or an input: pass data=TrainingData"):
        sparsify(net, mask=name)
    assert [n for n, _ in net.named_parameters()][:2] == ["0.weight", "0.bias"]  # still plain


def test_scored_batches_are_those_of_the_loader_in_turn(data):
    seen: list[Tensor] = []

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(batch[0])
        return classify(module, batch)

    batches = labelled((2, 4, 4), 3)
    scored(network(), SCORES["force"](steps=2, num_batches=2), TrainingData(loss, batches))
    assert [next(i for i, (x, _) in enumerate(batches) if x is y) for y in seen] == [0, 1, 2, 0]


PATH = "tests.masks.test_scores_contract"
EACH = "must give one tensor of the weight's shape for each weight"


@pytest.mark.parametrize("mask", [Descending(), Descending, f"{PATH}.Descending"])
def test_users_scores_choose_their_distribution(mask):
    found = masks(sparsify(network(), sparsity=0.75, mask=mask))
    assert {n: int(part.sum()) / part.numel() for n, part in found.items()} == dict.fromkeys(found, 0.25)
    assert all(part.flatten()[: int(part.sum())].all() for part in found.values())


@pytest.mark.parametrize("mask", [ascending, f"{PATH}.ascending"])
def test_users_functions_are_scores(mask):
    found = masks(sparsify(network(), sparsity=0.75, mask=mask))
    assert all(part.flatten()[-int(part.sum()) :].all() for part in found.values())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda scores: scores.pop("5.weight"), f"{EACH}; see '5.weight'"),
        (lambda scores: scores.update(more=torch.ones(2)), f"{EACH}; see 'more'"),
        (lambda scores: scores.update({"0.weight": torch.ones(4)}), f"{EACH}; see '0.weight'"),
        (lambda scores: scores.update({"0.weight": scores["0.weight"].numpy()}), f"{EACH}; see '0.weight'"),
        (lambda scores: scores["7.weight"].fill_(torch.nan), r"gave NaN scores for '7\.weight'\. Check that its"),
    ],
)
def test_users_scores_are_checked(change, text):
    def users(task) -> dict[str, Tensor]:
        scores = Descending()(task)
        change(scores)
        return scores

    with pytest.raises(ValueError, match=rf"`mask`='{PATH}\S*users' {text}"):
        sparsify(network(), mask=users)


def test_users_scores_are_a_dict():
    with pytest.raises(ValueError, match="must return a dict of weight name → score, got NoneType"):
        sparsify(network(), mask=lambda task: None)


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ("snop", "`mask` must be one of 'random', .*, or the import path of a function or class; got 'snop'"),
        (f"{PATH}.Nothing", f"got '{PATH}.Nothing' .*has no attribute 'Nothing'"),
        ("no_such_package.Score", r"got 'no_such_package.Score' \(No module named 'no_such_package'\)"),
        (f"{PATH}.TRAINING", "`mask` must be a name, an import path, or a function of a Task; got 'tests"),
        (3, "`mask` must be a name, an import path, or a function of a Task; got 3"),
    ],
)
def test_masks_that_are_no_scores_are_refused(mask, text):
    with pytest.raises(ValueError, match=text):
        sparsify(network(), mask=mask)


def test_scores_show_their_arguments_in_errors(data):
    with pytest.raises(ValueError, match=r"mask='SNIP\(num_batches=3\)' needs the training loss or an input"):
        sparsify(network(), mask=SNIP(num_batches=3))
