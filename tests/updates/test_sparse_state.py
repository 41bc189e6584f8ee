"""A loop of one's own that saves `sparse_state` and continues from it equals the uninterrupted one, bit for bit."""

import copy
import io
import re

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_signin import SignInError, load_sparse_state, masks, rescale_, sparse_state, sparsify
from lightning_signin.parametrizations import PARAMETRIZATIONS, STR, Powerprop
from tests.updates.loops import RULES, TOTAL, Loop

FORMS = [*PARAMETRIZATIONS, STR(sign_in=True, s_init=-3.0), Powerprop(sign_in=True, alpha=1.5)]


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def check_equal(loop, other):
    ours, theirs = list(loop.net.parameters()), list(other.net.parameters())
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    assert all(map(torch.equal, ours, theirs))
    assert all(torch.equal(mask, masks(other.net)[name]) for name, mask in masks(loop.net).items())
    if loop.updates is not None:
        assert loop.updates.state() == other.updates.state()


def check_resumes(at, last=TOTAL, **options):
    whole = Loop(**options).move_masks().train(0, at)
    saved = through_a_file(
        {
            "model": whole.net.state_dict(),
            "optimizer": whole.optimizer.state_dict(),
            "sparse": sparse_state(whole.net, whole.updates),
        }
    )
    again = Loop(**options, seed=1).move_masks()
    again.net.load_state_dict(saved["model"])
    load_sparse_state(again.net, saved["sparse"], again.updates)
    again.optimizer.load_state_dict(saved["optimizer"])
    check_equal(whole.train(at, last), again.train(at, last))


@pytest.mark.parametrize("parametrization", FORMS, ids=str)
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_resume_equals_the_uninterrupted_loop(parametrization, optimizer):
    check_resumes(11, 20, parametrization=parametrization, optimizer=optimizer)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("at", [3, 23])
def test_resume_equals_the_uninterrupted_loop_with_masks_that_move(rule, at):
    check_resumes(at, rule=rule)


def test_resume_in_dense_storage():
    check_resumes(23, rule="rigl", storage="dense")


def test_model_and_optimizer_alone_are_another_run():
    whole = Loop().train(0, 11)
    again = Loop()
    again.net.load_state_dict(whole.net.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    with pytest.raises(AssertionError):
        check_equal(whole.train(11, 20), again.train(11, 20))


@pytest.mark.parametrize("rule", [None, "rigl", "gmp"])
def test_fabric_saves_and_loads_it(rule, tmp_path):
    def set_up():
        fabric, loop = Fabric(accelerator="cpu", devices=1), Loop(rule)
        loop.run, loop.stepped = fabric.setup(loop.net, loop.optimizer)
        return fabric, loop.move_masks()

    fabric, whole = set_up()
    whole.train(0, 23, backward=fabric.backward)
    state = {"model": whole.run, "optimizer": whole.stepped, "sparse": sparse_state(whole.run, whole.updates)}
    fabric.save(tmp_path / "run.ckpt", state)
    plain = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 4))
    plain.load_state_dict(torch.load(tmp_path / "run.ckpt", weights_only=True)["model"])

    other, again = set_up()
    state = {"model": again.run, "optimizer": again.stepped, "sparse": None}
    other.load(tmp_path / "run.ckpt", state)
    load_sparse_state(again.run, state["sparse"], again.updates)
    whole.train(23, TOTAL, backward=fabric.backward)
    check_equal(whole, again.train(23, TOTAL, backward=other.backward))


def test_rescaled_after_loading_equals_rescaled_without():
    net = sparsify(nn.Linear(20, 10), sparsity=0.5, beta=2.0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    again = sparsify(nn.Linear(20, 10), sparsity=0.5, beta=2.0, seed=3)
    again.load_state_dict(net.state_dict())
    load_sparse_state(again, sparse_state(net))
    assert torch.equal(rescale_(again).weight, rescale_(net).weight)
    assert all(map(torch.equal, again.parameters(), net.parameters()))


@pytest.mark.parametrize(
    ("saved", "loaded", "text"),
    [
        ({}, {"beta": 2.0}, "0.weight was saved as m ⊙ w with beta=1.0, and is m ⊙ w with beta=2.0. Call `sparsify`"),
        (
            {"parametrization": Powerprop(alpha=3.0)},
            {"parametrization": "powerprop"},
            "was saved as Power(alpha=3.0) of a plain masked weight, and is Power(alpha=2.0) of a plain",
        ),
        ({}, {"parametrization": "plain"}, "was written with another `parametrization` of 0.weight"),
        ({"exclude": ["3.weight"]}, {}, "has other sparse weights than this run: 3.weight is not sparse in"),
        ({"rule": "rigl"}, {}, "The sparse state was saved with RigL(schedule=Cosine(every_n_steps=4"),
        ({}, {"rule": "rigl"}, "The sparse state was saved without mask updates. Leave out `updates`."),
        (
            {"rule": "rigl"},
            {"rule": "set"},
            "updates were saved with update=RigL(schedule=Cosine(every_n_steps=4",
        ),
        ({"rule": "rigl", "moves": {"seed": 5}}, {"rule": "rigl"}, "were saved with seed=5, here it is 0. Call"),
        ({"rule": "rigl", "moves": {"total_steps": 41}}, {"rule": "rigl"}, "total_steps=41, here it is 40"),
        ({"rule": "gmp", "moves": {"sparsity": 0.5}}, {"rule": "gmp"}, "budgets=[[['0.weight', '3.weight'], 192]]"),
    ],
)
def test_state_of_another_run_is_refused_and_changes_nothing(saved, loaded, text):
    def made(options):
        moves = options.pop("moves", {})
        return Loop(**options).move_masks(**moves)

    run, other = made(dict(saved)), made(dict(loaded))
    before = [parameter.clone() for parameter in other.net.parameters()]
    with pytest.raises(SignInError, match=re.escape(text)):
        load_sparse_state(other.net, sparse_state(run.net, run.updates), other.updates)
    assert all(map(torch.equal, before, other.net.parameters()))


def test_damaged_and_newer_states_are_refused():
    net = Loop().net
    state = sparse_state(net)
    with pytest.raises(SignInError, match="The sparse state has version 3, and this package reads 2"):
        load_sparse_state(net, state | {"version": 3})
    with pytest.raises(SignInError, match="The sparse state does not have the expected structure"):
        load_sparse_state(net, {name: value for name, value in state.items() if name != "forms"})
    with pytest.raises(SignInError, match="masks do not match their digest"):
        load_sparse_state(net, state | {"digest": "0"})
    with pytest.raises(SignInError, match=r"no sparse weights\. Call `sparsify` first"):
        sparse_state(nn.Linear(2, 2))
