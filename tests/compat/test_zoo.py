"""Every score on networks of torchvision and timm: masks of the exact size, or a refusal that says why.

Each network meets two or three scores and each score at least three networks; `benchmarks/model_zoo.py` runs all pairs.
"""

from collections import Counter

import pytest

from benchmarks.mask_grid import FEW_STEPS
from benchmarks.model_zoo import NETWORKS, outcome
from lightning_signin.masks import SCORES

MEETS = {  # large networks meet scores that are quickly computed
    "torchvision resnet18": ("random", "magnitude"),
    "torchvision mobilenet_v3_small": ("synflow", "grasp"),
    "torchvision shufflenet_v2_x0_5": ("force", "npb"),
    "torchvision squeezenet1_1": ("phew", "prospr", "synflow"),
    "torchvision mnasnet0_5": ("iterative-snip", "force"),
    "torchvision regnet_y_400mf": ("magnitude", "prospr"),
    "resnet10t": ("random", "snip"),
    "mobilenetv3_small_050": ("iterative-snip", "phew"),
    "efficientnet_b0": ("magnitude", "grasp"),
    "regnetx_002": ("npb", "prospr"),
    "convnext_atto": ("random", "grasp"),
    "ghostnet_050": ("snip", "prospr"),
    "vit_tiny_patch16_224": ("iterative-snip", "phew"),
    "deit_tiny_distilled_patch16_224": ("force", "synflow"),
    "swin_tiny_patch4_window7_224": ("iterative-snip", "npb"),
    "mixer_s32_224": ("random", "magnitude"),
    "gmlp_ti16_224": ("magnitude", "force"),
    "levit_conv_128s": ("random", "snip"),
    "tf_efficientnetv2_b0": ("magnitude", "grasp"),
    "tiny_vit_5m_224": ("snip", "grasp"),
}
PAIRS = [(name, score) for name, scores in MEETS.items() for score in scores]
CUT, ZERO = "The mask cuts the network from input to output", "their scores are all zero"
NO_SECOND, MIXES = "derivative for aten::hardsigmoid_backward is not implemented", "is undefined for"
REFUSED = {
    ("torchvision mobilenet_v3_small", "synflow"): ZERO,
    ("torchvision mobilenet_v3_small", "grasp"): NO_SECOND,
    ("torchvision shufflenet_v2_x0_5", "force"): ZERO,
    ("torchvision mnasnet0_5", "iterative-snip"): CUT,
    ("torchvision regnet_y_400mf", "prospr"): CUT,
    ("efficientnet_b0", "magnitude"): CUT,
    ("efficientnet_b0", "grasp"): CUT,
    ("regnetx_002", "prospr"): CUT,
    ("ghostnet_050", "snip"): CUT,
    ("ghostnet_050", "prospr"): NO_SECOND,
    ("vit_tiny_patch16_224", "phew"): MIXES,
    ("swin_tiny_patch4_window7_224", "npb"): MIXES,
    ("mixer_s32_224", "magnitude"): ZERO,  # of the head, which timm starts at zero
    ("gmlp_ti16_224", "magnitude"): ZERO,
    ("gmlp_ti16_224", "force"): ZERO,
    ("levit_conv_128s", "snip"): ZERO,
    ("tf_efficientnetv2_b0", "grasp"): CUT,
    ("tiny_vit_5m_224", "snip"): ZERO,
    ("tiny_vit_5m_224", "grasp"): ZERO,
}


@pytest.mark.parametrize(("name", "score"), PAIRS)
def test_a_score_on_a_known_network(name, score):
    line = outcome(name, FEW_STEPS.get(score, score))
    if (refusal := REFUSED.get((name, score))) is None:
        assert line.startswith("fits")
    else:
        assert line.startswith("refused: ")
        assert refusal in line


def test_every_network_and_every_score_is_met():
    assert list(MEETS) == list(NETWORKS)
    assert len(NETWORKS) == 20
    assert min(Counter(score for _, score in PAIRS)[score] for score in SCORES) >= 3
