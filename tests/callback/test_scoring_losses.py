"""Training steps with several losses, each of its own optimizer: every weight feels its own only."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import sparsify
from lightning_signin.masks import SNIP, GraSP, ProsPr, TrainingData
from tests.score_references import classify, labelled, scored

SGD = {"lr": 0.1, "momentum": 0.7}


@pytest.mark.parametrize("score", [SNIP(), GraSP(), ProsPr(steps=2, **SGD)])
@pytest.mark.parametrize("listed", [list, iter])
def test_each_weight_feels_the_losses_of_its_own_optimizer(score, listed):
    net = nn.ModuleDict({"g": nn.Linear(4, 4), "d": nn.Linear(4, 3)}).double()

    def losses(module, batch):
        fake = module["g"](batch[0])
        first, second = module["d"](fake).square().mean(), F.cross_entropy(module["d"](fake), batch[1])
        return [(first, listed(module["g"].parameters())), (second, listed(module["d"].parameters()))]

    def alone(which):
        return lambda module, batch: losses(module, batch)[which][0]

    batches = labelled((4,), 3)
    found, _ = scored(net, score, TrainingData(losses, batches))
    if isinstance(score, SNIP):
        for which, name in enumerate(found):
            expected, _ = scored(net, score, TrainingData(alone(which), batches))
            assert torch.equal(found[name], expected[name])
    both, _ = scored(net, score, TrainingData(lambda m, b: sum(loss for loss, _ in losses(m, b)), batches))
    assert all(found[name].any() and not torch.allclose(found[name], both[name]) for name in found)


def test_losses_may_list_what_optimizers_took_of_the_copy():
    class Prepared(TrainingData):
        def copy(self, module: nn.Module) -> nn.Module:
            made = super().copy(module)
            self.optimizer = torch.optim.SGD(made.parameters())
            return made

    def losses(module: nn.Module, batch: tuple[Tensor, Tensor]) -> list:
        return [(classify(module, batch), data.optimizer.param_groups[0]["params"])]

    net, batches = nn.Linear(4, 3).double(), labelled((4,), 2)
    data = Prepared(losses, batches)
    for score in (SNIP(num_batches=2), ProsPr(steps=1, **SGD)):
        found, _ = scored(net, score, data)
        expected, _ = scored(net, score, TrainingData(classify, batches))
        assert torch.equal(found["weight"], expected["weight"])


def test_losses_of_foreign_parameters_are_refused():
    net, batches = nn.Linear(4, 3).double(), labelled((4,), 1)
    data = TrainingData(lambda module, batch: [(classify(module, batch), net.parameters())], batches)
    with pytest.raises(ValueError, match="None of the losses trains a parameter of the module that `loss_fn`"):
        sparsify(net, mask="snip", data=data)


@pytest.mark.parametrize("score", ["snip", "force", "grasp", "prospr"])
@pytest.mark.parametrize("of", [lambda loss: loss, lambda loss: loss.detach()])
def test_loss_that_depends_on_no_weight_is_refused(score, of):
    net, text = nn.Linear(3, 2), f"depends on none of the selected weights, so mask='{score}' cannot tell them apart"
    data = TrainingData(lambda module, batch: of((module.bias * batch).sum()), [torch.ones(2)])
    with pytest.raises(ValueError, match=text):
        sparsify(net, mask=score, data=data)


def test_loss_without_a_hessian_is_refused():
    data = TrainingData(lambda module, batch: module(batch).sum(), [torch.ones(2, 3)])
    with pytest.raises(ValueError, match="linear in the selected weights: it has no Hessian for mask='grasp'"):
        sparsify(nn.Linear(3, 2), mask="grasp", data=data)


@pytest.mark.parametrize(
    ("of", "shown"),
    [(lambda loss: loss, r"a tensor of shape \(2, 2\)"), (lambda loss: 3.5, "3.5"), (lambda loss: None, "None")],
)
def test_loss_that_is_not_one_number_is_refused(of, shown):
    data = TrainingData(lambda module, batch: of(module(batch)), [torch.ones(2, 3)])
    with pytest.raises(ValueError, match=f"must be a tensor of one number for mask='snip', got {shown}"):
        sparsify(nn.Linear(3, 2), mask="snip", data=data)
