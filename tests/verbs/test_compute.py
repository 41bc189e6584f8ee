"""`compute`: layers that run on their non-zeros train as with the whole weight; where that is not possible, they do."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lightning_signin import (
    MaskUpdates,
    SignInError,
    compute_table,
    load_sparse_state,
    masks,
    merge_,
    plain_view,
    rescale_,
    sparse_state,
    sparsify,
)
from lightning_signin.core.weights import sparse_weights
from lightning_signin.kernels.timing import GAIN
from lightning_signin.metrics import memory, sharpness
from lightning_signin.parametrizations import PARAMETRIZATIONS
from lightning_signin.updates import SET, RigL, SRigL
from lightning_signin.updates.change import change_mask_
from lightning_signin.updates.schedules import Cosine

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1, stride=2, bias=False),
        nn.Tanh(),
        nn.Conv2d(16, 16, 3, padding="same", groups=4),
        nn.Flatten(2),
        nn.Conv1d(16, 16, 4, padding="same", padding_mode="reflect"),
        nn.Linear(16, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    ).to(dtype)


def images(count=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=dtype)


def made(compute, **options):
    return sparsify(net(), sparsity=0.8, compute=compute, **options)


def choices(module):
    return {name: weight.parametrization.choice for name, weight in sparse_weights(module).items()}


def train(module, steps=4, optimizer=None, updates=None):
    optimizer = optimizer or optimizer_of(module)
    for _ in range(steps):
        if updates is not None:
            updates.before_batch()
        optimizer.zero_grad()
        loss = module(images()).square().mean()
        loss.backward()
        if updates is None or not updates.before_step(optimizer):
            optimizer.step()
    return optimizer


def optimizer_of(module):
    with plain_view(module):
        return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


def check_close(one, other):
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **CLOSE)


@pytest.mark.parametrize("parametrization", [*PARAMETRIZATIONS])
def test_training_is_that_with_whole_weights(parametrization):
    sparse, dense = (made(compute, parametrization=parametrization) for compute in ("sparse", "dense"))
    assert {choice.taken for choice in choices(sparse).values()} == {"sparse"}
    for module in (sparse, dense):
        optimizer = train(module)
        rescale_(module, optimizers=[optimizer], momentum="carry")
        train(module, optimizer=optimizer)
    check_close(sparse, dense)
    check_close(merge_(sparse), merge_(dense))


@pytest.mark.parametrize("rule", [RigL, SET, SRigL])
def test_masks_move_as_with_whole_weights(rule):
    found = {}
    for compute in ("sparse", "dense"):
        structure = {"structure": "constant-fan-in"} if rule is SRigL else {}
        module = sparsify(net(), sparsity=0.8, compute=compute, exclude=["0.weight", "4.weight"], **structure)
        optimizer = optimizer_of(module)
        updates = MaskUpdates(module, rule(Cosine(3)), [optimizer], total_steps=12)
        start = masks(module)
        train(module, 12, optimizer, updates)
        assert any(not torch.equal(mask, start[name]) for name, mask in masks(module).items())
        found[compute] = module
    assert all(torch.equal(mask, masks(found["dense"])[name]) for name, mask in masks(found["sparse"]).items())
    check_close(found["sparse"], found["dense"])


def test_whole_weight_is_never_saved_for_the_backward_pass():
    module = sparsify(nn.Linear(300, 200), sparsity=0.9, compute="sparse")
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        module(torch.randn(4, 300)).sum().backward()
    assert sizes
    assert max(sizes) <= 0.1 * 200 * 300


def test_mask_that_moves_between_forward_and_backward_is_noticed():
    module = sparsify(nn.Linear(40, 30), sparsity=0.5, compute="sparse", parametrization="plain")
    loss = module(torch.randn(4, 40)).sum()
    (weight,) = sparse_weights(module).values()
    weight.storage.move_to(type(weight.storage)(~weight.storage.mask))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_of_gradients_and_sharpness():
    x, found = images().requires_grad_(), {}
    for compute in ("sparse", "dense"):
        module = made(compute)
        (gradient,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        (gradient.norm() - 1).square().backward()
        found[compute] = (module, float(sharpness(module, lambda net, x: net(x).square().mean(), [images()])))
    check = zip(found["sparse"][0].parameters(), found["dense"][0].parameters(), strict=True)
    for own, other in check:
        if other.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, **CLOSE)
    assert found["sparse"][1] == pytest.approx(found["dense"][1], rel=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    results = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        layer = sparsify(nn.Linear(256, 256), sparsity=0.9)
        x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = checkpoint(layer, x, use_reentrant=reentrant) if wrapped else layer(x)
        out.sum().backward()
        results.append(x.grad)
    torch.testing.assert_close(*results)


def test_accumulated_gradients_and_no_grad():
    sparse, dense = made("sparse"), made("dense")
    for module in (sparse, dense):
        for part in images().chunk(3):
            module(part).square().mean().backward()
    for own, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(sparse.eval()(images()), dense.eval()(images()), **CLOSE)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(images()), dense(images()), **CLOSE)


def test_functional_calls_transforms_and_counters_see_the_plain_layer():
    sparse, dense = made("sparse"), made("dense")
    other = {name: value + 1 for name, value in dense.state_dict().items()}
    torch.testing.assert_close(
        torch.func.functional_call(sparse, other, images()), torch.func.functional_call(dense, other, images())
    )
    vmapped = [torch.func.vmap(module)(images()[:, None]) for module in (sparse, dense)]
    torch.testing.assert_close(*vmapped, **CLOSE)
    counts = []
    for module in (sparse, dense):
        with FlopCounterMode(display=False) as counter:
            module(images())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_where_it_is_not_possible_the_whole_weight_is_used_and_that_is_said_once():
    module = sparsify(nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)), sparsity=0.5, compute="sparse")
    x = torch.randn(4, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.warns(UserWarning, match="runs with its whole weight, as with compute='dense'") as warned:
            assert module(x).dtype == torch.bfloat16
        assert len(warned) == 1
    twin = sparsify(nn.Linear(20, 20), sparsity=0.5, compute="sparse")
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        twin(torch.randn(4, 19))


def test_wrong_values_are_refused():
    with pytest.raises(SignInError, match="`compute` must be one of"):
        sparsify(net(), compute="csr")
    with pytest.raises(SignInError, match="compute='sparse' needs the non-zeros alone"):
        sparsify(net(), compute="sparse", storage="dense")


def large(sparsity=0.95, compute="auto"):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 8))
    return sparsify(layers, sparsity=sparsity, compute=compute)


def step(module, rows=64):
    module(torch.randn(rows, 1024)).sum().backward()


def test_auto_measures_large_layers_in_training_and_takes_the_faster_way():
    module = large()
    module.eval()(torch.randn(4, 1024))
    first, second = choices(module).values()
    assert (first.taken, first.times) == (None, None)
    assert (second.taken, second.reason) == ("dense", "too small to gain")
    module.train()
    x = torch.randn(64, 1024)
    state = torch.random.get_rng_state()
    module(x).sum().backward()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.taken == ("sparse" if first.times.gain >= GAIN else "dense")
    lines = compute_table(module).splitlines()
    assert lines[0].split() == ["weight", "sparsity", "dense", "ms", "sparse", "ms", "speedup", "runs"]
    assert f"{first.times.gain:.2f}" in lines[1]
    assert lines[1].endswith(first.taken)
    assert lines[2].endswith("dense (too small to gain)")


def test_layers_of_one_form_share_a_measurement():
    module = sparsify(nn.Sequential(*(nn.Linear(256, 256) for _ in range(4))), sparsity=0.9)
    module(torch.randn(32, 256, requires_grad=True)).sum().backward()
    assert len({id(choice.times) for choice in choices(module).values()}) == 1


def test_choice_is_saved_and_loaded_and_what_is_asked_for_comes_first():
    module = large()
    for choice in choices(module).values():
        choice.taken = "sparse"
    saved = sparse_state(module)
    assert set(saved["compute"].values()) == {"sparse"}
    for compute, expected in (("auto", "sparse"), ("dense", "dense")):
        again = large(compute=compute)
        load_sparse_state(again, saved)
        assert choices(again)["0.weight"].taken == expected


def test_deterministic_algorithms_leave_nothing_to_a_timing():
    torch.use_deterministic_algorithms(True)
    try:
        first, _ = choices(large()).values()
    finally:
        torch.use_deterministic_algorithms(False)
    assert (first.taken, first.reason) == ("dense", "deterministic algorithms: no timing may decide")


def test_mask_of_another_size_is_measured_anew():
    module = large(0.6)
    step(module)
    weight = sparse_weights(module)["0.weight"]
    before = weight.parametrization.choice.times
    fewer = weight.storage.mask & (torch.rand(512, 1024) < 0.2)
    change_mask_(weight, fewer)
    assert weight.parametrization.choice.taken is None
    step(module)
    assert weight.parametrization.choice.times not in (None, before)


def test_positions_are_counted_and_no_longer_than_they_must_be():
    module = sparsify(nn.Linear(200, 100, bias=False), sparsity=0.9, compute="sparse")
    kept, row = 2000, lambda: memory(module).layers[0].sparse.index
    assert row() == 4 * kept
    module(torch.randn(4, 200))
    assert row() == 4 * (kept + 101)
    module(torch.randn(4, 200, requires_grad=True)).sum().backward()
    assert row() == 4 * (3 * kept + 101 + 201)


def test_copies_and_pickles_run_on_their_non_zeros():
    module = made("sparse")
    expected = module(images())
    for again in (copy.deepcopy(module),):
        assert torch.equal(again(images()), expected)
        assert {choice.taken for choice in choices(again).values()} == {"sparse"}
