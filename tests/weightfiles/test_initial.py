"""Signs and magnitudes of other runs, and wrong signs: exact, entry by entry, and nothing else changed."""

import copy
import re
from math import inf, nan

import pytest
import torch
from torch import Tensor, nn

from lightning_signin import effective_weights, masks, sparsify
from lightning_signin.core.weights import sparse_weights
from lightning_signin.weightfiles.transplants import flip_signs_, transplant_

NAMES = ["0.weight", "2.weight"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
VARIANTS = pytest.mark.parametrize(
    ("storage", "parametrization"), [(s, r) for s in ("compact", "dense") for r in ("sign-in", "plain")]
)


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 10), nn.BatchNorm1d(10), nn.Linear(10, 6)).to(dtype)


def pruned(seed: int) -> dict[str, Tensor]:
    """The state dict of another run: about half of its weights are 0."""
    state = network(seed).state_dict()
    return {name: value * (torch.rand_like(value) > 0.5) if value.ndim == 2 else value for name, value in state.items()}


def expected(own: Tensor, sign: Tensor | None, magnitude: Tensor | None) -> Tensor:
    """Entry by entry: the source's sign and magnitude where it has one."""
    result = []
    for i, value in enumerate(own.flatten().tolist()):
        s = value if sign is None or sign.flatten()[i] == 0 else sign.flatten()[i].item()
        a = value if magnitude is None or magnitude.flatten()[i] == 0 else magnitude.flatten()[i].item()
        result.append((s > 0) * abs(a) - (s < 0) * abs(a))
    return torch.tensor(result, dtype=torch.float64).view(own.shape)


@DTYPES
@pytest.mark.parametrize("signs", [True, False])
@pytest.mark.parametrize("magnitudes", [True, False])
def test_transplant_joins_signs_and_magnitudes_entry_by_entry(dtype, signs, magnitudes):
    net, sources = network(0, dtype), (pruned(1) if signs else None, pruned(2) if magnitudes else None)
    with torch.no_grad():
        net[0].weight[0, :4] = 0
    before = copy.deepcopy(net.state_dict())
    parameters = {name: (id(value), value.data_ptr()) for name, value in net.named_parameters()}
    assert transplant_(net, names=NAMES, signs_from=sources[0], magnitudes_from=sources[1]) is net
    for name, value in net.state_dict().items():
        want = before[name]
        if name in NAMES:
            want = expected(want, *(None if source is None else source[name] for source in sources)).to(dtype)
        assert torch.equal(value, want), name
    assert {name: (id(value), value.data_ptr()) for name, value in net.named_parameters()} == parameters


def test_tiny_magnitude_rounds_and_is_not_taken_for_a_missing_one():
    net = nn.Linear(1, 1).half()
    transplant_(net, names=["weight"], magnitudes_from={"weight": torch.tensor([[1e-20]])})
    assert net.weight.item() == 0


@pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": {f"net.{n}": v for n, v in state.items()}}])
def test_sources_are_files_of_any_prefix(tmp_path, wrap):
    path = tmp_path / "run.ckpt"
    torch.save(wrap(pruned(1)), path)
    a = transplant_(network(), names=NAMES, signs_from=path, magnitudes_from=str(path))
    b = transplant_(network(), names=NAMES, signs_from=pruned(1), magnitudes_from=pruned(1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_source_may_be_the_state_dict_of_a_sparse_module():
    other = sparsify(network(1), sparsity=0.5)
    net = transplant_(network(), names=["0.weight"], signs_from=other.state_dict())
    kept = masks(other)["0.weight"]
    assert torch.equal(net[0].weight.sign()[kept], other[0].weight.sign()[kept])
    assert torch.equal(net[0].weight[~kept], network()[0].weight[~kept])


def test_transplanted_signs_survive_sparsify():
    source = pruned(1)
    learned = {name: source[name] != 0 for name in NAMES}
    net = sparsify(transplant_(network(), names=NAMES, signs_from=source), mask=learned)
    for name, theta in effective_weights(net).items():
        assert torch.equal(theta.sign(), source[name].sign())


def test_tied_weight_is_transplanted_once(zoo):
    own = zoo.encoder.weight
    signs, magnitudes = torch.randn(8, 8), torch.randn(8, 8)
    sources = [{"encoder.weight": value, "decoder.weight": -2 * value} for value in (signs, magnitudes)]
    names = ["encoder.weight", "decoder.weight"]
    transplant_(zoo, names=names, signs_from=sources[0], magnitudes_from=sources[1])
    assert zoo.encoder.weight is own
    assert zoo.decoder.weight is own
    assert torch.equal(own, (signs.sign() * magnitudes.abs()).double())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"names": ["head"]}, "`names`: the module has no parameter 'head'. It has: weight, bias."),
        ({"signs_from": {"other": torch.ones(1, 2)}}, "`signs_from` has nothing for weight. It has: other."),
        ({"magnitudes_from": {"weight": torch.ones(2, 2)}}, "`magnitudes_from` has shape (2, 2) for weight, which has"),
        ({"signs_from": {"weight": torch.tensor([[nan, 1]])}}, "`signs_from` has values of weight that are not finite"),
        ({"magnitudes_from": {"weight": torch.tensor([[inf, 1]])}}, "`magnitudes_from` has values of weight that are"),
        ({"magnitudes_from": {"weight": torch.tensor([[1e5, 1]])}}, "that are too large for torch.float16. Transplant"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_source_that_does_not_fit_changes_nothing(options, text):
    net = nn.Linear(2, 1).half()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=re.escape(text)):
        transplant_(net, **{"names": ["weight"], "signs_from": {"weight": -torch.ones(1, 2)}, **options})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_file_of_masks_alone_has_no_signs(tmp_path):
    torch.save({"weight": torch.ones(1, 2, dtype=torch.int32)}, tmp_path / "mask.pth")
    with pytest.raises(ValueError, match=r"`signs_from` .*mask.pth holds only masks, no signs or magnitudes"):
        transplant_(nn.Linear(2, 1), names=["weight"], signs_from=tmp_path / "mask.pth")


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"There is no file missing\.ckpt"):
        transplant_(nn.Linear(2, 1), names=["weight"], magnitudes_from="missing.ckpt")


def test_sparse_module_is_not_transplanted_into():
    with pytest.raises(
        ValueError, match=r"is already sparse, but signs are set on plain weights\. Call `merge_` first"
    ):
        transplant_(sparsify(nn.Linear(4, 4), sparsity=0.5), names=["weight"])


def sparse(storage: str, parametrization: str = "sign-in", dtype: torch.dtype = torch.float32) -> nn.Module:
    return sparsify(network(0, dtype), sparsity=0.5, storage=storage, parametrization=parametrization)


def flipped(net: nn.Module, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where the effective weights are negated; everywhere else they must be equal bit for bit."""
    result = {}
    for name, now in effective_weights(net).items():
        result[name] = (now == -before[name]) & (now != 0)
        assert torch.equal(now.where(~result[name], -now), before[name])
    return result


@DTYPES
@VARIANTS
def test_flips_are_exact_on_the_mask_and_leave_all_else(storage, parametrization, dtype):
    net = sparse(storage, parametrization, dtype)
    before, kept = effective_weights(net), masks(net)
    factors = {name: [f.detach().clone() for f in weight.factors] for name, weight in sparse_weights(net).items()}
    parameters = {name: id(parameter) for name, parameter in net.named_parameters()}
    assert flip_signs_(net, 0.2) is net
    assert sum(int(where.sum()) for where in flipped(net, before).values()) == 14  # of (80 + 60) / 2
    for name, weight in sparse_weights(net).items():
        assert torch.equal(weight.storage.mask, kept[name])
        assert all(torch.equal(f.abs(), old.abs()) for f, old in zip(weight.factors, factors[name], strict=True))
        assert torch.equal(weight.factors[0], factors[name][0]) == (parametrization == "sign-in")  # m stays
    assert {name: id(parameter) for name, parameter in net.named_parameters()} == parameters


def test_masked_entries_are_not_touched_whatever_they_hold():
    net = sparse("dense", parametrization="plain")
    for weight in sparse_weights(net).values():
        with torch.no_grad():
            weight.factors[0][~weight.storage.mask] = 7.0
    flip_signs_(net, 1.0)
    assert all((weight.factors[0][~weight.storage.mask] == 7.0).all() for weight in sparse_weights(net).values())


def test_flips_are_the_same_in_every_form_and_no_global_generator_is_used():
    found = []
    for storage in ("compact", "dense"):
        for parametrization in ("sign-in", "plain"):
            net = sparse(storage, parametrization)
            before = effective_weights(net)
            torch.manual_seed(len(found))
            state = torch.get_rng_state()
            found.append(flipped(flip_signs_(net, 0.3, seed=5), before))
            assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(found[0][name], other[name]) for other in found for name in NAMES)
    other_seed = sparse("compact")
    before = effective_weights(other_seed)
    assert not torch.equal(flipped(flip_signs_(other_seed, 0.3, seed=6), before)["0.weight"], found[0]["0.weight"])


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.05, 2), (0.15, 8), (0.1, 5), (0.01, 0), (0.5, 25), (1, 50)])
def test_share_is_counted_exactly_with_halves_to_even(share, count):
    net = sparsify(nn.Linear(10, 10), sparsity=0.5)
    before = effective_weights(net)
    assert flipped(flip_signs_(net, share), before)["weight"].sum() == count


def test_flips_are_uniform_over_the_kept_weights_of_all_layers():
    times: dict[str, Tensor] = {name: torch.zeros(()) for name in NAMES}
    for seed in range(400):
        net = sparse("compact")
        before = effective_weights(net)
        for name, where in flipped(flip_signs_(net, 0.3, seed=seed), before).items():
            times[name] = times[name] + where.double()
    counts = torch.cat([times[name][mask] for name, mask in masks(net).items()])
    assert counts.mean() == 400 * 0.3
    assert (counts - counts.mean()).abs().max() < 5 * (400 * 0.3 * 0.7) ** 0.5


def test_tied_weight_flips_once(zoo):
    sparsify(zoo, sparsity=0.5)
    before = effective_weights(zoo)
    flip_signs_(zoo, 1.0)
    assert torch.equal(zoo.decoder.weight, -before["encoder.weight"])


@pytest.mark.parametrize("share", [-0.1, 1.5, 95, nan])
def test_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=re.escape(f"`share` must be in [0, 1], got {share}. Pass the fraction")):
        flip_signs_(sparse("compact"), share)


def test_module_without_sparse_weights_has_nothing_to_flip():
    with pytest.raises(ValueError, match=r"has no sparse weights whose signs could flip\. Call `sparsify` first"):
        flip_signs_(nn.Linear(2, 2), 0.1)
