"""What resuming needs beside the plain state dict: back bit for bit, or refused."""

import io
import re

import pytest
import torch
from torch import nn

from lightning_signin import masks, sparsify
from lightning_signin.core.weights import sparse_weights
from lightning_signin.weightfiles.factor_state import (
    factor_state,
    load_factor_state,
    mask_digest,
    pack_bits,
    saved_masks,
    unpack_bits,
)

VARIANTS = pytest.mark.parametrize(
    "options",
    [{"storage": s, "parametrization": r} for s in ("compact", "dense") for r in ("sign-in", "plain")],
    ids=["compact", "compact-masked", "dense", "dense-masked"],
)
FIX = "Resume with the arguments and the model of the run that wrote it."


def network(hidden: int = 7, **options: object) -> nn.Module:
    return sparsify(nn.Sequential(nn.Linear(5, hidden), nn.Linear(hidden, 3)), **{"sparsity": 0.6, **options})


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def disturb(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in sparse_weights(net).values():
            for factor in weight.factors:
                factor.mul_(torch.rand_like(factor))
    return net


def refuses(net: nn.Module, state: dict, text: str) -> None:
    before = {name: value.clone() for name, value in net.named_parameters()}
    with pytest.raises(ValueError, match=re.escape(text)):
        load_factor_state(net, state)
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 1000])
def test_bits_round_trip_in_an_eighth_of_the_space(size):
    mask = torch.rand(size) > 0.5
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-size // 8)
    assert packed.tolist() == [sum(2**i for i, bit in enumerate(part) if bit) for part in mask.split(8)]
    assert torch.equal(unpack_bits(packed, (size, 1)), mask.view(size, 1))


@VARIANTS
@pytest.mark.parametrize("seed", [0, 1])
def test_factors_come_back_bit_for_bit(options, seed):
    source, target = disturb(network(**options)), network(seed=seed, **options)
    parameters = list(target.parameters())
    load_factor_state(target, through_a_file(factor_state(source)))
    for weight, loaded in zip(sparse_weights(source).values(), sparse_weights(target).values(), strict=True):
        assert torch.equal(weight.storage.mask, loaded.storage.mask)
        assert all(torch.equal(a, b) for a, b in zip(weight.factors, loaded.factors, strict=True))
    assert mask_digest(source) == mask_digest(target)
    assert all(a is b for a, b in zip(parameters, target.parameters(), strict=True))


@pytest.mark.parametrize("parametrization", ["sign-in", "plain"])
@pytest.mark.parametrize(
    ("saved", "here"),
    [
        ({"storage": "compact"}, {"storage": "compact", "distribution": "uniform", "sparsity": 0.8}),
        ({"storage": "compact"}, {"storage": "dense"}),
        ({"storage": "dense"}, {"storage": "compact"}),
        ({"distribution": "balanced"}, {"distribution": "uniform"}),  # "auto" chooses another storage for the second
    ],
)
def test_factors_of_another_size_or_storage_come_back(saved, here, parametrization):
    source = disturb(network(parametrization=parametrization, **saved))
    target, kept = network(parametrization=parametrization, **here), masks(source)
    load_factor_state(target, through_a_file(factor_state(source)))
    pairs = list(zip(sparse_weights(source).values(), sparse_weights(target).values(), strict=True))
    for weight, loaded in pairs:
        assert weight.storage.name == loaded.storage.name
        assert all(torch.equal(a, b) for a, b in zip(weight.factors, loaded.factors, strict=True))
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1, momentum=0.9)
    target(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(weight.effective(), loaded.effective()) for weight, loaded in pairs)
    assert all(torch.equal(target.get_submodule(name[0]).weight != 0, mask) for name, mask in kept.items())


@pytest.mark.parametrize("sparsity", [0.6, 0.8])
def test_loaded_factors_share_no_memory_with_the_state(sparsity):
    source, target = network(storage="compact"), network(sparsity=sparsity, storage="compact")
    before = [parameter.clone() for parameter in source.parameters()]
    load_factor_state(target, factor_state(source))
    disturb(target)
    assert all(torch.equal(a, b) for a, b in zip(before, source.parameters(), strict=True))


def test_factor_state_is_moved_to_the_dtype_of_the_module():
    source = disturb(network())
    target = network(seed=1).double()
    load_factor_state(target, factor_state(source))
    assert {parameter.dtype for parameter in target.parameters()} == {torch.float64}
    assert torch.equal(target[0].weight.float(), source[0].weight)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"exclude": ["1.*"]}, f"other sparse weights than this run: 1.weight is not sparse in the checkpoint. {FIX}"),
        ({"hidden": 6}, "The checkpoint's mask of 0.weight has shape (6, 5), but the weight has shape (7, 5). " + FIX),
        ({"parametrization": "plain"}, f"The checkpoint was written with another `parametrization` of 0.weight. {FIX}"),
    ],
)
def test_another_run_is_refused(other, text):
    refuses(network(), factor_state(network(**other)), text)


def test_another_run_is_refused_the_other_way_round():
    refuses(network(exclude=["1.*"]), factor_state(network()), f"1.weight is not sparse in this run. {FIX}")
    text = f"The checkpoint was written with another `parametrization` of 0.weight. {FIX}"
    refuses(network(parametrization="plain"), factor_state(network()), text)


def test_a_run_that_differs_in_its_last_weight_is_refused_whole():
    source = sparsify(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 4)), sparsity=0.6, seed=1)
    refuses(network(), factor_state(disturb(source)), "The checkpoint's mask of 1.weight has shape (4, 7)")


def test_damaged_masks_are_refused():
    state = through_a_file(factor_state(network()))
    assert saved_masks(state).keys() == {"0.weight", "1.weight"}
    state["masks"]["1.weight"]["bits"][0] ^= 1
    refuses(network(), state, "The checkpoint's masks do not match their digest: the file is damaged.")
    with pytest.raises(ValueError, match="do not match their digest"):
        saved_masks(state)


def test_saved_masks_are_the_masks():
    net = network(storage="dense")
    assert all(torch.equal(mask, masks(net)[name]) for name, mask in saved_masks(factor_state(net)).items())


def test_digest_is_equal_exactly_when_masks_are():
    base = mask_digest(network())
    assert mask_digest(disturb(network(storage="dense", parametrization="plain"))) == base
    assert mask_digest(network(seed=1)) != base
    named = nn.ModuleDict({"a": nn.Linear(5, 7), "b": nn.Linear(7, 3)})
    assert mask_digest(sparsify(named, sparsity=0.6)) != base  # other names
    full = [mask_digest(sparsify(nn.Linear(*shape), sparsity=0)) for shape in ((4, 6), (6, 4), (3, 8))]
    assert len(set(full)) == 3  # the same bits in other shapes
