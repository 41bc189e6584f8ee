"""What cannot be trained is refused before training, with the layer or the argument and the way out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.callbacks import ModelPruning
from torch import nn

from lightning_signin import SignInCallback
from tests.compat.module_rows import Manual
from tests.compat.network_rows import images, normed, scripted
from tests.compat.optimizer_rows import REFUSED, task
from tests.compat.rows import Row, run, sparse
from tests.compat.task import Net, Task
from tests.compat.trainer_rows import OtherImport

LEAVE_OUT = r" Leave it out with exclude=\['{}'\]"


def lazy() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(10))


def pruned() -> nn.Module:
    net = Net()
    nn.utils.prune.l1_unstructured(net.hidden, "weight", 0.5)
    return net


def of(name: str, net: Callable[[], nn.Module], **options: Any) -> Row:
    return Row(name, lambda: Task(net), sign_in=options)


class BackwardAlone(Manual):
    """Manual optimization past Lightning's own call."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch).backward()
        self.optimizers().step()


def compiled() -> nn.Module:
    net = Net()
    net.hidden = torch.compile(net.hidden, backend="aot_eager")
    return net


def optimized(name: str, **options: Any) -> Row:
    return Row(name, task(getattr(torch.optim, name)), sign_in=options)


OF_A_LAYER = [
    (of("lazy", lazy), "net.2.weight", r"has no shape yet \(a lazy module\)\. Run one batch through the model first\."),
    (
        of("scripted", scripted, include=["*"]),
        "net.1.weight",
        "belongs to a scripted layer, which has compiled how it reads its weight",
    ),
    (of("weight_norm", normed(nn.utils.parametrizations.weight_norm)), "net.1.weight", r"is already parametrized \(_W"),
    (of("spectral_norm", normed(nn.utils.parametrizations.spectral_norm)), "net.1.weight", "is already parametrized"),
    (
        of("older weight_norm", normed(nn.utils.weight_norm)),
        "net.1.weight",
        "is not a parameter of its Conv2d",
    ),
    (of("pruned", pruned), "net.hidden.weight", "is not a parameter of its Linear: pruning or weight normalization"),
]
OF_THE_RUN = [
    (of("scripted", lambda: torch.jit.script(images(features=288))), ValueError, "Nothing to sparsify"),
    (
        of("complex", lambda: nn.Linear(8, 8, dtype=torch.complex64)),
        TypeError,
        "must be floating-point, got",
    ),
    (
        Row("backward alone", BackwardAlone, sign_in={"mask": "snip"}),
        ValueError,
        r"called no `self\.manual_backward\(loss\)` on a first batch",
    ),
    *(
        (of(f"compiled {mask}", compiled, mask=mask), ValueError, "needs second derivatives")
        for mask in ("grasp", "prospr")
    ),
    *((optimized(name, rescale_momentum="keep"), (ValueError, RuntimeError), text) for name, text in REFUSED.items()),
    (optimized("Adafactor", storage="compact", rescale_momentum="keep"), ValueError, "Pass storage='dense', or use an"),
    (optimized("Adamax"), ValueError, r"no rule for the state \['exp_inf'\] of Adamax\. Use momentum='keep'"),
    (optimized("LBFGS"), ValueError, r"no rule for the state \[.*\] of LBFGS\. Use momentum='keep'"),
]


@pytest.mark.parametrize(("row", "layer", "text"), OF_A_LAYER, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_layer_that_cannot_be_sparse_is_named_and_can_be_left_out(row, layer, text, tmp_path):
    with pytest.raises(ValueError, match=f"{layer} {text}.*{LEAVE_OUT.format(layer)}"):
        run(row, tmp_path, sparse(row))


@pytest.mark.parametrize(("row", "error", "text"), OF_THE_RUN, ids=lambda value: getattr(value, "name", ""))
def test_run_that_cannot_be_sparse_is_refused(row, error, text, tmp_path):
    with pytest.raises(error, match=text):
        run(row, tmp_path, sparse(row))


def test_companion_of_pytorch_lightning_is_refused_as_that_of_lightning():
    trainer = partial(pytorch_lightning.Trainer, logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(ValueError, match="ModelPruning replaces the weights that SignInCallback replaces"):
        trainer(callbacks=[SignInCallback(), ModelPruning("l1_unstructured")]).fit(OtherImport(), [])


def test_callback_of_pytorch_lightning_is_given_in_a_list():
    with pytest.raises(TypeError, match="'SignInCallback' object is not iterable"):
        pytorch_lightning.Trainer(callbacks=SignInCallback(), logger=False)


def test_exports_of_pytorch_lightning_include_its_checkpoints(tmp_path):
    saver = pytorch_lightning.callbacks.ModelCheckpoint(tmp_path, "kept")
    row = Row(
        "", OtherImport, lambda _: {"callbacks": [saver], "enable_checkpointing": True}, lightning=pytorch_lightning
    )
    run(row, tmp_path, SignInCallback(sparsity=0.8, export="safetensors"))
    assert {path.name for path in tmp_path.rglob("*.safetensors")} == {"kept.safetensors", "merged.safetensors"}
