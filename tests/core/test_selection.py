"""Which weights become sparse, and the text that every odd case gets."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lightning_signin import masks, sparsify
from lightning_signin.core.selection import select_weights


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose1d(6, 6, 1)
        self.norm = nn.LayerNorm([6, 5])
        self.attention = nn.MultiheadAttention(6, 2)
        self.blocks = nn.Sequential(nn.Linear(6, 6), nn.PReLU(6), nn.Linear(6, 6))
        self.head = nn.Linear(6, 10, bias=False)


ATTENTION = ["attention.in_proj_weight", "attention.out_proj.weight"]
BLOCKS = ["blocks.0.weight", "blocks.2.weight"]
DEFAULT = ["conv.weight", "up.weight", *ATTENTION, *BLOCKS, "head.weight"]
EVERY = ["embedding.weight", "conv.weight", "up.weight", "norm.weight", "norm.bias", *DEFAULT[2:]]
NOTHING = "Nothing to sparsify: the model has no trainable weight of a known kind that `include` and `exclude` leave"


def chosen(module: nn.Module, **options: object) -> list[str]:
    return list(select_weights(module, **options))


def refuses(module: nn.Module, text: str, **options: object) -> None:
    """`sparsify` says so, and the module is as it was."""
    names = [name for name, _ in module.named_parameters()]
    with pytest.raises(ValueError, match=re.escape(text)):
        sparsify(module, sparsity=0.5, **options)
    assert [name for name, _ in module.named_parameters()] == names


def test_selection_takes_what_multiplies_activations_by_default():
    assert chosen(Mixed()) == DEFAULT
    every = ([nn.Conv1d, nn.Conv2d, nn.Conv3d], [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
    assert all(chosen(kind(4, 4, 1)) == ["weight"] for kinds in every for kind in kinds)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*"], None, EVERY),
        (["*weight"], None, [name for name in EVERY if name.endswith("weight")]),
        (["blocks.*"], None, ["blocks.0.weight", "blocks.2.weight"]),
        (["head.weight", "conv*"], None, ["conv.weight", "head.weight"]),
        (["embedding.weight"], None, ["embedding.weight"]),
        (["*in_proj_weight"], None, ["attention.in_proj_weight"]),
        (["type:Linear", "type:*Norm"], None, ["norm.weight", "norm.bias", ATTENTION[1], *BLOCKS, "head.weight"]),
        (None, ["type:_ConvNd", "type:Linear"], ["attention.in_proj_weight"]),
        (["norm.*"], None, ["norm.weight", "norm.bias"]),
        (["attention.*"], None, ATTENTION),
        (None, ["head*"], DEFAULT[:-1]),
        (None, ["blocks.[02].*", "up*", "attention*"], ["conv.weight", "head.weight"]),
        (None, ["embedding*"], DEFAULT),
        (["blocks*"], ["*.2.*"], ["blocks.0.weight"]),
        (["blocks*"], ["head*"], ["blocks.0.weight", "blocks.2.weight"]),
    ],
)
def test_patterns_choose(include, exclude, expected):
    assert chosen(Mixed(), include=include, exclude=exclude) == expected
    assert list(masks(sparsify(Mixed(), sparsity=0.5, include=include, exclude=exclude))) == expected


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_patterns_must_be_a_list(argument):
    text = f"`{argument}` must be a list of glob patterns, got the string '*.weight'. Write [...]."
    refuses(Mixed(), text, **{argument: "*.weight"})


NAMES = "matches no weight. Names look like: embedding.weight, conv.weight, up.weight, norm.weight, norm.bias."
VECTORS = "of less than two dimensions: norms and biases stay dense."


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("heads.*", NAMES),
        ("*.bias_k", NAMES),
        ("CONV*", NAMES),
        ("conv.bias", f"matches only conv.bias, {VECTORS}"),
        ("blocks.1.*", f"matches only blocks.1.weight, {VECTORS}"),
        ("type:GRU", "matches no layer with weights. There are: Embedding, Conv1d, ConvTranspose1d, LayerNorm, "),
    ],
)
def test_patterns_must_match_something(argument, pattern, text):
    refuses(Mixed(), f"`{argument}` pattern {pattern!r} {text}", **{argument: ["conv*", pattern]})


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (nn.LayerNorm(4), {}),
        (nn.Embedding(3, 4), {}),
        (nn.Linear(3, 3), {"exclude": ["*"]}),
        (Mixed(), {"include": []}),
    ],
)
def test_selection_refuses_to_choose_nothing(module, options):
    refuses(module, NOTHING, **options)


def test_patterns_on_a_module_without_weights_say_so():
    text = "`include` pattern '*' matches no weight. Names look like: none, the module has no weights."
    refuses(nn.ReLU(), text, include=["*"])


def test_frozen_weight_stays_dense_with_a_warning():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].weight.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"0\.weight is frozen \(requires_grad=False\): it stays dense") as caught:
        sparsify(net, sparsity=0.5)
    assert caught[0].filename == __file__  # it points at the caller
    assert list(masks(net)) == ["1.weight"]
    assert type(net[0]) is nn.Linear


def test_frozen_weights_share_one_warning():
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    net[:7].requires_grad_(False)
    text = r"0.weight, 1.weight, 2.weight, 3.weight, 4.weight and 2 more are frozen \(requires_grad=False\): they stay"
    with pytest.warns(UserWarning, match=text) as caught:
        sparsify(net, sparsity=0.5)
    assert len(caught) == 1


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)


REPLACED = "1.weight is not a parameter of its Linear: pruning or weight normalization has replaced it. Make that "


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: spectral_norm(nn.Linear(4, 4)), "1.weight is already parametrized (_SpectralNorm). Merge or remove "),
        (lambda: weight_norm(nn.Linear(4, 4)), "1.weight is already parametrized (_WeightNorm). Merge or remove "),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), REPLACED),
        (pruned, REPLACED),
        (lambda: nn.Linear(4, 4, device="meta"), "1.weight has no values yet (the meta device). "),
        (lambda: nn.LazyLinear(4), "1.weight has no shape yet (a lazy module). Run one batch through the model first."),
    ],
)
def test_selection_refuses_a_weight_that_is_not_plain(make, text):
    net = nn.Sequential(nn.Linear(4, 4), make())
    refuses(net, text)
    refuses(net, "Leave it out with exclude=['1.weight'].")
    assert list(masks(sparsify(net, sparsity=0.5, exclude=["1.*"]))) == ["0.weight"]


def test_selection_refuses_a_layer_with_another_parametrization():
    net = nn.Sequential(nn.Linear(4, 4), parametrize.register_parametrization(nn.Linear(4, 4), "bias", nn.Tanh()))
    refuses(net, "The bias beside 1.weight is already parametrized (Tanh). Merge or remove that first.")


def test_selection_refuses_a_scripted_layer_that_is_named():
    net = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))
    refuses(net, "1.weight belongs to a scripted layer, which has compiled how it reads its weight.", include=["*"])
    assert chosen(net, exclude=["1.*"]) == chosen(net, include=["*"], exclude=["1.*"]) == ["0.weight"]


def tied() -> nn.Module:
    net = nn.ModuleDict({"embedding": nn.Embedding(8, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 8, bias=False)})
    net["head"].weight = net["embedding"].weight
    return net


def test_weight_tied_to_an_embedding_stays_dense_with_a_warning():
    text = r"head\.weight is tied to embedding\.weight, which is not selected: it stays dense"
    with pytest.warns(UserWarning, match=text):
        net = sparsify(tied(), sparsity=0.5)
    assert list(masks(net)) == ["body.weight"]
    assert net["head"].weight is net["embedding"].weight


def test_weight_tied_to_an_embedding_is_sparse_if_both_are_chosen():
    net = sparsify(tied(), sparsity=0.5, include=["head.weight", "embedding.weight"])
    kept = masks(net)
    assert len(kept) == 1
    assert torch.equal(net["head"].weight, net["embedding"].weight)
    # The name it goes by is one and the same for choosing and for finding it again.
    again = sparsify(tied(), mask=kept, include=["head.weight", "embedding.weight"])
    assert list(masks(again)) == list(kept) == chosen(tied(), include=["head.weight", "embedding.weight"])


def test_tied_linears_are_chosen_once(zoo):
    selected, plain_parameters = select_weights(zoo), len(list(zoo.parameters()))
    assert list(selected) == ["conv.weight", *ATTENTION, "first.weight", "encoder.weight"]
    assert selected["encoder.weight"] == [(zoo.encoder, "weight"), (zoo.decoder, "weight")]
    sparsify(zoo, sparsity=0.5)
    assert sum(int(mask.sum()) for mask in masks(zoo).values()) == (96 + 6 * 64) // 2
    assert zoo.encoder.parametrizations["weight"] is zoo.decoder.parametrizations["weight"]
    assert len(list(zoo.parameters())) == plain_parameters + len(selected)  # one more for each product


def test_error_names_weights_that_are_frozen():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).requires_grad_(False)
    with pytest.raises(ValueError, match=r"Nothing to sparsify: .* 0\.weight, 1\.weight are frozen: unfreeze before"):
        select_weights(net)
