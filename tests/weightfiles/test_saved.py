"""Weights and masks from files of any moment, ours and other programs'."""

import io
import re

import pytest
import torch
from fsspec.implementations.memory import MemoryFile
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_signin import masks, merge_, sparsify
from lightning_signin.core.weights import sparse_weights
from lightning_signin.export import write_safetensors
from lightning_signin.weightfiles.files.paths import write_whole
from lightning_signin.weightfiles.saved import masks_from_file, read_weights
from tests.small import callback, loader, seeded, trainer

MASK = torch.tensor([[1, 0, 1], [0, 0, 1]])
SHAPES = {"fc.weight": (2, 3)}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 2))


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters() if p.ndim >= 2}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert all(mask.dtype == torch.bool for mask in found.values())
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)


def saved(tmp_path, state: dict, name: str = "file.pt"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def with_active_zero(module: nn.Module) -> nn.Module:
    """One weight on the mask of the first layer is 0."""
    first = next(iter(sparse_weights(module).values()))
    with torch.no_grad():
        first.factors[-1][tuple(first.storage.pack(first.storage.mask).nonzero()[0])] = 0
    return module


def test_saved_state_dict_without_masks_is_read(tmp_path):
    weights = read_weights(saved(tmp_path, nn.Linear(3, 2).state_dict()))
    assert list(weights.tensors) == ["weight", "bias"]
    assert (weights.kept, weights.masks) == ({}, {})


def test_file_that_would_run_code_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds objects beyond tensors and plain values"):
        read_weights(saved(tmp_path, {"state_dict": {"weight": nn.Linear(2, 2)}}))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02junk"])
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "notes.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.ckpt cannot be read safely: it is damaged, not a checkpoint, or"):
        read_weights(tmp_path / "notes.ckpt")


@pytest.mark.parametrize("storage", ["compact", "dense"])
def test_masks_of_a_live_module_include_active_zeros(storage):
    module = with_active_zero(sparsify(network(), sparsity=0.5, storage=storage))
    weights = read_weights(module)
    assert same(weights.masks, masks(module))
    assert (weights.tensors["0.weight"] != 0).sum() == weights.kept["0.weight"] - 1


@pytest.mark.parametrize("when", ["during", "after"])
def test_own_checkpoint_gives_the_masks_with_their_active_zeros(tmp_path, when):
    model, plain = seeded(lr=0.0), seeded()
    nn.init.zeros_(model.fc1.weight)
    fit = trainer(callback(sparsity=0.8, seed=3), epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "after.ckpt")
    path = next(path for path in tmp_path.rglob("*.ckpt") if (path.stem == "after") == (when == "after"))
    assert not read_weights(path).tensors["fc1.weight"].any()
    assert same(masks_from_file(path, shapes(plain)), masks(sparsify(plain, sparsity=0.8, seed=3)))


def test_own_safetensors_gives_its_zeros_and_tells_of_active_ones(tmp_path):
    module = sparsify(network(), sparsity=0.5)
    exact = write_safetensors(read_weights(module), tmp_path / "exact.safetensors")
    assert same(masks_from_file(exact, shapes(network())), masks(module))
    assert same(masks_from_file(exact), masks(module))
    lossy = write_safetensors(read_weights(with_active_zero(module)), tmp_path / "lossy.safetensors")
    kept = int(masks(module)["0.weight"].sum())
    with pytest.warns(UserWarning, match=f"{kept} weights of 0.weight were kept, but only {kept - 1} are not 0"):
        found = masks_from_file(lossy, shapes(network()))
    assert found["0.weight"].sum() == kept - 1


@pytest.mark.parametrize("lightning", [True, False])
def test_plain_checkpoint_gives_its_zeros_and_its_dense_layers(tmp_path, lightning):
    module = sparsify(network(), sparsity=0.5, exclude=["4.weight"])
    expected = masks(module)
    state = merge_(module).state_dict()
    path = saved(tmp_path, {"state_dict": state, "epoch": 1} if lightning else state)
    assert same(masks_from_file(path), expected)
    dense = torch.ones(2, 6, dtype=torch.bool)
    assert same(masks_from_file(path, shapes(network())), expected | {"4.weight": dense})


def test_torch_prune_masks_are_exact(tmp_path):
    module = network()
    for index, amount in ((0, 10), (3, 20), (4, 1)):
        prune.random_unstructured(module[index], "weight", amount=amount)
    prune.random_unstructured(module[3], "bias", amount=2)
    with torch.no_grad():
        module[0].weight_orig.zero_()
    path = saved(tmp_path, module.state_dict())
    expected = {f"{index}.weight": module[index].weight_mask.bool() for index in (0, 3, 4)}
    assert same(masks_from_file(path, shapes(network())), expected)
    assert same(masks_from_file(path), expected)
    weights = read_weights(path)
    assert set(weights.tensors) == set(network().state_dict())
    for index in (3, 4):
        prune.remove(module[index], "weight")
        assert torch.equal(weights.tensors[f"{index}.weight"], module[index].weight)


def test_pruned_weights_of_ones_are_not_taken_for_masks(tmp_path):
    path = saved(tmp_path, {"fc.weight_orig": torch.ones(2, 3), "fc.weight_mask": MASK.float()})
    assert same(masks_from_file(path), {"fc.weight": MASK.bool()})


class TurboLinear(nn.Conv1d):
    """A Linear as TurboPrune saves it: a convolution of width 1, and its mask as a buffer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)
        self.register_buffer("mask", torch.ones_like(self.weight))


def test_turboprune_masks_fit_linear_layers(tmp_path):
    module = nn.ModuleDict({"fc": TurboLinear(3, 2), "attention": nn.Linear(3, 3)})
    module["fc"].mask.copy_(MASK.unsqueeze(-1))
    module["attention"].register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))  # not of the weight
    path = saved(tmp_path, module.state_dict())
    assert same(masks_from_file(path, SHAPES), {"fc.weight": MASK.bool()})
    weights = read_weights(path)
    assert list(weights.masks) == ["fc.weight"]
    assert torch.equal(weights.tensors["fc.weight"], module["fc"].weight * module["fc"].mask)
    assert "fc.mask" not in weights.tensors
    assert "attention.mask" in weights.tensors


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.uint8, torch.bool])
@pytest.mark.parametrize("mask", [MASK, torch.ones_like(MASK)], ids=["pruned", "whole"])
def test_file_of_masks_alone_is_read_in_every_dtype(tmp_path, dtype, mask):
    whole = torch.ones(1, 2, 3, 3, dtype=dtype)
    path = saved(tmp_path, {"fc.weight": mask.to(dtype), "conv.weight": whole}, "mask.pth")
    found = masks_from_file(path)
    assert same(found, {"fc.weight": mask.bool(), "conv.weight": whole.bool()})
    assert same(masks_from_file(path, SHAPES), {"fc.weight": mask.bool()})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("", ""),
        ("", "model."),
        ("", "student.encoder."),
        ("", "_orig_mod."),
        ("model.", ""),
        ("model.", "module.net."),
        ("net._orig_mod.", "module."),
        ("encoder.net.", "_orig_mod."),
    ],
)
def test_names_match_up_to_prefixes(tmp_path, ours, theirs):
    # A stem whose name ends the names of others: only a prefix that all names share tells them apart.
    names = ["conv.weight", "block.0.conv.weight", "block.1.conv.weight"]
    values = [torch.randn(2, 2).where(torch.eye(2) > 0, torch.zeros(())).roll(i, 0) for i in range(3)]
    path = saved(tmp_path, {theirs + name: value for name, value in zip(names, values, strict=True)})
    found = masks_from_file(path, {ours + name: (2, 2) for name in names})
    assert same(found, {ours + name: value != 0 for name, value in zip(names, values, strict=True)})


def test_compile_inside_a_name_does_not_count(tmp_path):
    path = saved(tmp_path, {"body._orig_mod.fc.weight": MASK * 0.5})
    assert same(masks_from_file(path, {"body.fc.weight": (2, 3)}), {"body.fc.weight": MASK.bool()})


def test_exact_names_go_before_longer_ones(tmp_path):
    path = saved(tmp_path, {"ema.fc.weight": torch.eye(2), "fc.weight": torch.eye(2).flip(0)})
    assert same(masks_from_file(path, {"fc.weight": (2, 2)}), {"fc.weight": torch.eye(2).flip(0).bool()})


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"fc.weight": torch.ones(2, 3) * 2, "b": torch.zeros(2)}, "holds no mask: none of its weights has zeros"),
        ({"head.weight": MASK * 2.0}, "has nothing for fc.weight. It has: head.weight. Choose the weights that it has"),
        ({"fc.bias": torch.zeros(2)}, "has nothing for fc.weight. It has: nothing."),
        ({"fc.weight": MASK.T * 2.0}, "has shape (3, 2) for fc.weight, which has shape (2, 3). Use a file of the same"),
        ({"fc.weight": MASK * 0.0, "b": torch.ones(2)}, "The mask of fc.weight in FILE keeps nothing. Leave it dense"),
        ({"fc.weight": MASK * 0}, "The mask of fc.weight in FILE keeps nothing. Leave it dense with exclude=['fc.weig"),
        ({"fc.weight": MASK * 2}, "fc.weight must hold only 0 and 1 to be a mask, got 2. Threshold it first."),
        (
            {"fc.weight_orig": MASK * 1.0, "fc.weight_mask": MASK * 0.5},
            "fc.weight_mask must hold only 0 and 1 to be a mask, got 0.5",
        ),
        (
            {"a.fc.weight": MASK * 2.0, "b.fc.weight": MASK * 3.0},
            "both a.fc.weight and b.fc.weight could be fc.weight. Pass the right tensors directly, as a dict",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_file_that_does_not_fit_is_refused(tmp_path, state, text):
    path = saved(tmp_path, state)
    with pytest.raises(ValueError, match=re.escape(text.replace("FILE", str(path)))):
        masks_from_file(path, SHAPES)


def test_names_that_differ_in_two_ways_do_not_match(tmp_path):
    path = saved(tmp_path, {"fc.weight": MASK * 2.0, "head.weight": MASK * 2.0})
    with pytest.raises(ValueError, match=r"has nothing for model\.fc\.weight\. It has: fc\.weight, head\.weight\."):
        masks_from_file(path, {"model.fc.weight": (2, 3), "head.weight": (2, 3)})


def test_dense_file_holds_no_mask_whatever_else_in_it_has_zeros(tmp_path):
    state = {"fc.weight": torch.ones(2, 3) * 2, "embedding.weight": torch.eye(3), "position": torch.zeros(3, 3)}
    path = saved(tmp_path, state)
    with pytest.raises(ValueError, match="holds no mask"):
        masks_from_file(path, SHAPES)
    assert list(masks_from_file(path)) == ["embedding.weight"]


def test_remote_file_is_transferred_once(monkeypatch):
    file = io.BytesIO()
    torch.save(network().state_dict() | {"large": torch.rand(100_000)}, file)
    write_whole("memory://once.ckpt", file.getvalue())
    transferred = []
    plain = MemoryFile.read, MemoryFile.readinto
    monkeypatch.setattr(MemoryFile, "read", lambda f, *a: noted(plain[0](f, *a)), raising=False)
    monkeypatch.setattr(MemoryFile, "readinto", lambda f, into: noted(into[: plain[1](f, into)]), raising=False)

    def noted(data):
        transferred.append(len(data))
        return data

    assert "large" in read_weights("memory://once.ckpt").tensors
    assert sum(transferred) == len(file.getvalue())
