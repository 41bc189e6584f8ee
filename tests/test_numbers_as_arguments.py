"""Every public numeric argument takes any kind of number, keeps a plain one, and refuses all else by its name."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_signin import MaskUpdates, SignInError, effective_weights, flip_signs_, masks, plain_view, sparsify
from lightning_signin.masks.scores.grasp import GraSP
from lightning_signin.masks.scores.npb import NPB
from lightning_signin.masks.scores.prospr import ProsPr
from lightning_signin.masks.scores.snip import FORCE, SNIP, IterativeSNIP
from lightning_signin.masks.scores.synflow import SynFlow
from lightning_signin.metrics import hessian_trace, memory, sharpness
from lightning_signin.parametrizations import STR, PILoT, Powerprop, Spred
from lightning_signin.updates import GMP, MEST, SET, Constant, Cosine, Cubic, Once, Phases, RigL, SRigL, Stages

# A class, and a value of each of its numeric fields; 0.125, 0.25, 1.5 and 0.75 are exact in every precision.
FIELDS = [
    (SNIP, {"num_batches": 3}),
    (IterativeSNIP, {"steps": 3, "num_batches": 3}),
    (FORCE, {"steps": 3, "num_batches": 3}),
    (GraSP, {"num_batches": 3, "temperature": 1.5}),
    (ProsPr, {"steps": 3, "lr": 0.25, "momentum": 0.25}),
    (SynFlow, {"iterations": 3}),
    (NPB, {"alpha": 0.25, "beta": 1.5, "max_per_kernel": 3}),
    *((rule, {"drop_fraction": 0.25}) for rule in (SET, RigL)),
    (SRigL, {"min_salient": 0.25}),
    (MEST, {"mutation": 0.25, "gradient_weight": 1.5}),
    (GMP, {"initial_sparsity": 0.25}),
    *((schedule, {"every_n_steps": 3, "until": 0.75}) for schedule in (Constant, Cosine)),
    (Stages, {"every_n_steps": 3}),
    (Cubic, {"every_n_steps": 3, "until": 0.75, "since": 0.25}),
    (Once, {"at": 0.25}),
    (Phases, {"warmup": 0.125, "phase": 0.125, "final_dense": 0.125, "final_sparse": 0.125}),
    (STR, {"s_init": 1.5}),
    (Powerprop, {"alpha": 1.5}),
    (Spred, {"decay_strength": 0.25}),
    (PILoT, {"decay_strength": 0.25, "delta": 1.5, "least_l1_norm": 0.25}),
]


def made(**options):
    torch.manual_seed(0)
    return sparsify(nn.Linear(12, 8), **{"sparsity": 0.75, **options})


def updates(**options):
    net = made()
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = MaskUpdates(net, "set", [optimizer], **{"total_steps": 300, **options})
    return found.total, found.seed, found.choice.target


def square(net, x):
    return net(x).square().mean()


def measured(measure, **options):
    return float(np.sum(measure(made(), square, [torch.ones(4, 12)], **options)))


def sharp(**options):
    return float(sharpness(made(), square, [torch.ones(4, 12)], **options))


# A function of one argument, its name, and a value.
CALLS = [
    (lambda **options: masks(made(**options))["weight"].tolist(), "sparsity", 0.25),
    (lambda **options: masks(made(**options))["weight"].tolist(), "seed", 3),
    (lambda **options: made(**options).parametrizations.weight.original0.tolist(), "beta", 1.5),
    (updates, "total_steps", 250),
    (updates, "sparsity", 0.25),
    (updates, "seed", 3),
    (lambda share: effective_weights(flip_signs_(made(), share))["weight"].tolist(), "share", 0.25),
    (lambda seed: effective_weights(flip_signs_(made(), 0.25, seed=seed))["weight"].tolist(), "seed", 3),
    (sharp, "k", 1),
    (sharp, "tol", 0.25),
    (sharp, "max_products", 3),
    (sharp, "seed", 3),
    (lambda **options: measured(hessian_trace, **options), "samples", 3),
    (lambda **options: measured(hessian_trace, **options), "seed", 3),
    (lambda optimizer: memory(made(), optimizer).total.sparse, "optimizer", 2),
]
ROWS = [
    *(
        (lambda value, cls=cls, name=name: repr(cls(**{name: value})), name, value)
        for cls, fields in FIELDS
        for name, value in fields.items()
    ),
    *((lambda value, call=call, name=name: call(**{name: value}), name, value) for call, name, value in CALLS),
]
IDS = [
    *(f"{cls.__name__}({name})" for cls, fields in FIELDS for name in fields),
    *(f"{name} of call {index}" for index, (_, name, _) in enumerate(CALLS)),
]
OTHERS = ["0.9", "1", True, False, np.bool_(True), math.nan, math.inf, -math.inf, np.float64("nan"), torch.tensor(True)]


@pytest.mark.parametrize(("call", "name", "value"), ROWS, ids=IDS)
def test_any_kind_of_number_is_the_same_one(call, name, value):
    whole = isinstance(value, int)
    kinds = [np.int64, np.uint8, torch.tensor] if whole else [np.float64, np.float32, np.float16, torch.tensor]
    for kind in kinds:
        assert call(kind(value)) == call(value), kind


@pytest.mark.parametrize(("call", "name", "value"), ROWS, ids=IDS)
def test_what_is_no_finite_number_is_refused_by_name(call, name, value):
    for other in (*OTHERS, *([2.5] if isinstance(value, int) else [])):
        with pytest.raises(SignInError, match=rf"^`{name}` must be "):
            call(other)
