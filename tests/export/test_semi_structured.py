"""2:4 kernels: which layers they take, that what is taken can be packed bit for bit, and what other machines say."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.sparse import _semi_structured_conversions as conversions
from torch.utils.data import DataLoader, TensorDataset

from lightning_signin import SignInCallback, merge_, sparsify
from lightning_signin.export.semi_structured import crowded_groups, to_semi_structured
from lightning_signin.recipes.models import MLP, Classifier
from tests.small import copies, differing, trainer

with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA GPU")
FITS = "The weights fit 2:4 kernels"


def net(structure: str = "2:4-cap", sparsity: float = 0.8, **options: object) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    return sparsify(layers, sparsity=sparsity, structure=structure, exclude=["4.weight"], **options)


def packs_exactly(weight: torch.Tensor) -> bool:
    """Whether torch's own packing, which silently drops what does not fit, gives the weight back."""
    packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(weight)
    assert packed.numel() * 2 == weight.numel()
    return torch.equal(conversions.sparse_semi_structured_to_dense_cutlass(packed, meta), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("structure", ["2:4-cap", "2:4", "unstructured"])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.97])
def test_what_is_taken_packs_bit_for_bit_and_what_is_refused_does_not(dtype, structure, sparsity):
    merged = merge_(net(structure, sparsity))
    for layer in (merged[0], merged[2]):
        weight = layer.weight.detach().to(dtype)
        assert packs_exactly(weight) == (crowded_groups(weight) == 0)
        assert structure == "unstructured" or packs_exactly(weight)


@without_cuda
@pytest.mark.parametrize("structure", ["2:4-cap", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_without_cuda_weights_that_fit_are_said_to(structure, dtype):
    module = net(structure)
    before = copies(module)
    for candidate in (module, merge_(copy.deepcopy(module))):
        with pytest.raises(RuntimeError, match=f"{FITS}.*compute capability 8.0.*this machine has no CUDA GPU"):
            to_semi_structured(candidate, dtype=dtype)
    assert differing(before, copies(module)) == []
    assert module[0].parametrizations  # still sparse


@without_cuda
def test_a_fit_with_the_cap_fits():
    x = torch.randn(64, 64)
    module = Classifier(MLP([64, 128, 64, 10]))
    sign_in = SignInCallback(sparsity=0.8, structure="2:4-cap")
    trainer(sign_in, epochs=2).fit(module, DataLoader(TensorDataset(x, x[:, :10].argmax(1)), 8))
    with (
        pytest.warns(UserWarning, match=r"These stay dense: network\.\S+ \(10×64\)\."),
        pytest.raises(RuntimeError, match=FITS),
    ):
        to_semi_structured(module)


def test_a_mask_that_does_not_fit_is_refused_by_name_on_any_machine():
    module = net("unstructured", 0.6)
    crowded = {name: crowded_groups(merge_(copy.deepcopy(module)).get_submodule(name).weight) for name in ("0", "2")}
    text = f"0 ({crowded['0']} of 2048 groups), 2 ({crowded['2']} of 2048 groups). Train with SignInCallback("
    with pytest.raises(ValueError, match=re.escape(f"{text}structure='2:4-cap')")):
        to_semi_structured(module)


def test_one_crowded_group_is_enough():
    module = merge_(net())
    with torch.no_grad():
        module[2].weight[5, 8:12] = torch.tensor([1.0, 0.0, 1e-30, 1.0])  # the least would be 0 in half precision
    with pytest.raises(ValueError, match=r"More have: 2 \(1 of 2048 groups\)"):
        to_semi_structured(module)


@without_cuda
def test_shapes_that_kernels_do_not_take_stay_dense_with_a_warning():
    module = nn.Sequential(nn.Linear(40, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    sparsify(module, sparsity=0.8, structure={"1.weight": "2:4-cap", "*": "unstructured"})
    with (
        pytest.warns(UserWarning, match=r"These stay dense: 0 \(64×40\), 2 \(10×64\)\."),
        pytest.raises(RuntimeError, match=FITS),
    ):
        to_semi_structured(module)


@without_cuda
def test_layers_of_fused_attention_stay_dense_with_a_warning():
    module = nn.Sequential(nn.TransformerEncoderLayer(64, 2, 128), nn.Linear(64, 64))
    sparsify(module, sparsity=0.8, structure="2:4-cap")
    with (
        pytest.warns(UserWarning, match=r"0\.self_attn\.out_proj \(read by fused attention\), 0\.linear1 \(read"),
        pytest.raises(RuntimeError, match=FITS),
    ):
        to_semi_structured(module)


def test_nothing_to_pack_is_refused():
    dense = nn.Linear(64, 64)
    nn.init.zeros_(dense.weight[3:4, 5:6])  # one zero makes no sparse layer
    with pytest.raises(ValueError, match=r"No nn\.Linear of this module has zeros"):
        to_semi_structured(nn.Sequential(dense))
    with pytest.raises(ValueError, match=r"the module itself \(10×64\)\. No layer is left to pack"):
        to_semi_structured(sparsify(nn.Linear(64, 10), sparsity=0.9))
    with pytest.raises(ValueError, match=r"`dtype` must be torch\.float16 or torch\.bfloat16, got torch\.float32"):
        to_semi_structured(net(), dtype=torch.float32)


@with_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpu_computes_what_the_merged_module_does(dtype):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs compute capability 8.0")
    module = net()
    packed = to_semi_structured(module, dtype=dtype)
    merged = merge_(copy.deepcopy(module)).to("cuda", dtype)
    for name in ("0", "2"):
        assert isinstance(packed.get_submodule(name).weight, torch.sparse.SparseSemiStructuredTensor)
    assert type(packed[4].weight) is nn.Parameter
    for batch in (1, 16, 128):
        x = torch.randn(batch, 64, device="cuda", dtype=dtype)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), merged(x), rtol=2e-2, atol=2e-2)
