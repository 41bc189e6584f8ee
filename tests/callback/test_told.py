"""What a fit says of its sparse weights, and how sparse the whole model comes out."""

import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.trainer.connectors.logger_connector import result
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import SignInCallback, masks, merge_, sparsify
from lightning_signin.core.weights import sparse_weights
from lightning_signin.export import export
from lightning_signin.updates import UPDATES
from lightning_signin.weightfiles.factor_state import saved_masks
from tests.compat.hugging_rows import MODELS
from tests.families import Graph, WordModel
from tests.small import Small, callback, loader, seeded, trainer


class Fitted(LightningModule):
    """Two steps of any network that is called with keywords, on one batch."""

    def __init__(self, net: nn.Module, batch: dict[str, Tensor], targets: Tensor | None = None) -> None:
        super().__init__()
        self.net, self.batch, self.targets = net, batch, targets

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        out = self.net(**self.batch)
        return out.loss if self.targets is None else F.cross_entropy(out.flatten(0, -2), self.targets)

    def train_dataloader(self) -> list[int]:
        return [0, 1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def hugging(name: str) -> Fitted:
    return Fitted(MODELS[name].make(), MODELS[name].batch())


FAMILIES = {
    **{name: partial(hugging, name) for name in ("GPT-2", "Mixtral", "ViT")},
    "LSTM": lambda: Fitted(WordModel(), {"tokens": torch.arange(24).view(2, 12)}, torch.arange(24)),
    "GCN": lambda: Fitted(Graph(), {"nodes": torch.randn(20, 16)}, torch.arange(20) % 4),
}


@pytest.mark.filterwarnings("ignore:It could not be checked")
@pytest.mark.filterwarnings("ignore:No gradient has reached")  # experts that no token of the two batches chose
@pytest.mark.parametrize("name", FAMILIES)
def test_nine_tenths_of_the_exported_matrices_are_zeros_by_default(name, tmp_path):
    module = FAMILIES[name]()
    runner = trainer(SignInCallback(sparsity=0.9), epochs=1)
    runner.fit(module)
    export(module, tmp_path / "sparse.safetensors", to="safetensors")
    embeddings = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Embedding)}
    tied = {id(module.get_parameter(name)) for name in embeddings}
    own = {name for name, p in module.named_parameters() if p.ndim > 1 and id(p) not in tied}
    broadcast = {name for name in own if module.get_parameter(name).shape[0] == 1}  # position embeddings, class tokens
    matrices = {
        name: value for name, value in load_file(tmp_path / "sparse.safetensors").items() if name in own - broadcast
    }
    zeros = sum(int((value == 0).sum()) for value in matrices.values()) / sum(v.numel() for v in matrices.values())
    assert zeros >= 0.89
    assert float(runner.callback_metrics["signin/model_sparsity"]) == pytest.approx(zeros, abs=1e-3)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("SignIn: ")]


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    return caplog


START = {
    "random mask, balanced": {},
    "magnitude mask, global": {"mask": "magnitude"},
    "random mask, erk, moved by SET": {"update": "set", "distribution": "erk"},
    "dense at the start, moved by GMP": {"update": "gmp"},
    "random mask, by groups": {"sparsity": None, "distribution": {"conv*": 0.0, "*": 0.7}},
}


@pytest.mark.parametrize("text", START)
def test_line_at_the_start(text, log):
    options = {**START[text]}
    rule = options.pop("update", None)
    module = seeded()
    chosen = callback(**options)
    size = 18 + 24 * 48 + 3 * 24
    if rule is not None:
        made = UPDATES[rule]()
        chosen = callback(**options, update=replace(made, schedule=replace(made.schedule, every_n_steps=5)))
    watch = Counted()
    trainer(chosen, watch, epochs=2).fit(module, loader())
    kept = sum(int(mask.sum()) for mask in masks_of(chosen).values()) if rule != "gmp" else size
    (line,) = said(log)
    counted = watch.counted
    assert line == (
        f"SignIn: 3 weights, {kept:,} of {size:,} values kept ({100 * (1 - kept / size):.2f} % sparse), {text}; "
        f"no matrix stays dense. They train as {counted:,} numbers."
    )


class Counted(Callback):
    """Counts the trained numbers of the sparse layers."""

    def on_train_start(self, trainer, module):
        self.counted = sum(p.numel() for weight in sparse_weights(module).values() for p in weight.tensors)


def masks_of(done: SignInCallback) -> dict[str, Tensor]:
    return saved_masks(done.state_dict())


def test_line_names_what_stays_dense_and_a_mask_from_elsewhere(log, tmp_path):
    module = seeded()
    own = callback(exclude=["fc2.weight"], mask="random")
    runner = trainer(own, epochs=1)
    runner.fit(module, loader())
    runner.save_checkpoint(tmp_path / "run.ckpt")
    runner = trainer(callback(exclude=["fc2.weight"], sparsity=None, mask_from=tmp_path / "run.ckpt"), epochs=1)
    runner.fit(seeded(), loader())
    trainer(own, epochs=2).fit(seeded(), loader(), ckpt_path=tmp_path / "run.ckpt")
    trainer(own, epochs=1).fit(module, loader())
    dense = "; 5.8 % of the matrix entries stay dense (fc2.weight). They"
    origins = [
        "random mask, balanced",
        f"mask of {tmp_path / 'run.ckpt'}",
        "mask of the checkpoint",
        "random mask, balanced",
    ]
    assert [line.partition("sparse), ")[2].partition(" train as")[0] for line in said(log)] == [
        o + dense for o in origins
    ]


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(30, 30))


def test_much_that_stays_dense_is_a_warning():
    net = nn.Sequential(nn.Linear(10, 10), Unknown())
    text = (
        r"90 % of the matrix entries stay dense: 1\.matrix\. Name them in `include`, or make a layer of your own known"
    )
    with pytest.warns(UserWarning, match=text):
        sparsify(net, sparsity=0.5)
    merge_(net)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "options", [{"exclude": ["1.matrix"]}, {"include": ["0.weight"]}, {"include": ["*"]}, {"exclude": ["type:Unknown"]}]
)
def test_what_is_chosen_is_no_surprise(options):
    sparsify(nn.Sequential(nn.Linear(10, 10), Unknown()), sparsity=0.5, **options)


@pytest.mark.filterwarnings("error")
def test_little_that_stays_dense_is_no_warning():
    sparsify(nn.Sequential(nn.Linear(100, 100), Unknown()), sparsity=0.5)


class Taught(Small):
    """A teacher that nobody has frozen, and a part that nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.idle = nn.Linear(10, 3), nn.Linear(10, 3)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.teacher(batch[0])
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for name, p in self.named_parameters() if "idle" not in name], 0.1)


def test_parts_that_do_not_train_are_named():
    with pytest.warns(UserWarning, match="in no optimizer") as caught:
        trainer(callback(exclude=["idle*"]), epochs=2).fit(Taught(), loader())
    texts = [str(warning.message) for warning in caught]
    no_optimizer = [text for text in texts if "in no optimizer" in text]
    assert no_optimizer == [
        "idle.weight, idle.bias have requires_grad=True but are in no optimizer, so they will not train. Add what "
        "should train to an optimizer in `configure_optimizers`, and freeze the rest (requires_grad_(False))."
    ]
    assert [text for text in texts if "No gradient" in text] == [
        "No gradient has reached teacher.weight in the first epoch: it does not train. If that is intended, as for a "
        "teacher, freeze (requires_grad_(False)) or leave dense with `exclude`."
    ]


def test_second_fit_of_a_module_with_another_head_says_whose_masks_do_not_fit():
    module, own = seeded(), callback()
    trainer(own, epochs=1).fit(module, loader())
    module.fc2 = nn.Linear(24, 5)
    text = (
        r"This SignInCallback reuses its masks from the last fit of this module, but fc2\.weight had the shape "
        r"\(3, 24\) then, and has \(5, 24\) now\. Use a new SignInCallback: it draws a new mask, or takes one with "
        r"`mask_from`\."
    )
    with pytest.raises(ValueError, match=text):
        trainer(own, epochs=1).fit(module, loader())
    assert not module.fc2.weight.eq(0).any()
    trainer(callback(distribution="uniform"), epochs=1).fit(module, loader())
    assert module.fc2.weight.eq(0).any()


def test_same_callback_on_a_second_module_draws_a_new_mask():
    class Wider(Small):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(48, 30), nn.Linear(30, 3)

    own = callback(seed=3)
    found = []
    for module in (seeded(), Wider()):
        trainer(own, epochs=1).fit(module, loader())
        found.append(masks_of(own))
        again = sparsify(type(module)(), sparsity=0.7, seed=3)
        assert all(torch.equal(mask, found[-1][name]) for name, mask in masks(again).items())
    assert found[0]["fc1.weight"].shape != found[1]["fc1.weight"].shape


class Summarized(ModelSummary):
    """Notes what it would print."""

    def summarize(self, summary_data, *totals, total_flops, **options):
        self.found = [*summary_data, *totals, total_flops]


@pytest.mark.parametrize("options", [{}, {"storage": "dense"}, {"parametrization": "plain"}], ids=str)
def test_the_model_summary_is_that_of_the_plain_model(options):
    found = []
    for own in ([], [callback(**options)]):
        module, summary = seeded(), Summarized(max_depth=-1)
        module.example_input_array = torch.randn(4, 10)
        runner = trainer(summary, *own, epochs=1, limit_train_batches=1)
        runner.fit(module, loader())
        found.append(summary.found)
    assert found[0] == found[1]


def test_numbers_are_averaged_over_ranks_without_a_warning(recwarn):
    result.warning_cache.clear()  # Lightning warns once
    runner = trainer(callback(), epochs=1, strategy="ddp", devices=1)
    runner.fit(seeded(), loader())
    assert "signin/sparsity" in runner.callback_metrics
    assert [str(each.message) for each in recwarn if "signin/" in str(each.message)] == []
