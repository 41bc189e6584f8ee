"""What update rules refuse, in which words; and how they are named in Python and YAML."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from lightning_signin import MaskUpdates, SignInCallback, plain_view, sparsify
from lightning_signin.updates import ACDC, GMP, MEST, SET, UPDATES, OneShot, RigL, Schedule, SRigL, UpdateRule
from lightning_signin.updates.schedules import Constant, Cosine, Cubic, Once, Phases, Stages
from tests.small import Small, callback, loader, seeded, trainer


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RigL(Cosine(0)), "`every_n_steps` must be a whole number of at least 1, got 0"),
        (lambda: SET(Constant(1.5)), "`every_n_steps` must be a whole number of at least 1, got 1.5"),
        (lambda: SET(100), r"`schedule` of SET must be a schedule, e.g. Constant\(every_n_steps=100, .*, got 100"),
        (lambda: RigL(Cosine), r"`schedule` of RigL must be a schedule, e.g. Cosine\(every_n_steps=100, .*, got <cl"),
        (lambda: RigL(Cosine(until=0)), r"`until` must be in \(0, 1\], got 0"),
        (lambda: RigL(drop_fraction=30), r"`drop_fraction` must be in \[0, 1\], got 30. Pass a fraction, e.g. 0.3"),
        (lambda: SET(drop_fraction=-1), r"`drop_fraction` must be in \[0, 1\], got -1"),
        (lambda: SRigL(min_salient=2), r"`min_salient` must be in \[0, 1\], got 2"),
        (lambda: MEST(mutation=5), r"`mutation` must be in \[0, 1\], got 5"),
        (lambda: MEST(gradient_weight=-1), "`gradient_weight` must be at least 0, got -1. It is MEST's λ"),
        (lambda: MEST(Stages(until=0.5)), "`until` must be above 0.75, where the last of `stages` begins, got 0.5"),
        (lambda: Stages(stages=[[0.1, 1.0]]), r"`stages` must begin at rising shares of the run, the first at 0, g"),
        (lambda: Stages(stages=((0, 1), (0.5, 0.5), (0.5, 0))), "`stages` must begin at rising shares of the run"),
        (lambda: Stages(stages=()), "`stages` must begin at rising shares of the run"),
        (lambda: Stages(stages=((0, 2),)), r"`stages` must be in \[0, 1\], got 2"),
        (lambda: Stages(stages=((0, 1, 1),)), "`stages` must be pairs of a share of the run and an amount, got"),
        (lambda: GMP(Cubic(since=0.9)), "`since`=0.9 is after `until`=0.75"),
        (lambda: GMP(initial_sparsity=1.0), r"`initial_sparsity` must be in \[0, 1\), got 1.0"),
        (lambda: OneShot(Once(75)), r"`at` must be in \[0, 1\], got 75"),
        (lambda: ACDC(Phases(warmup=0)), r"`warmup` must be in \(0, 1\], got 0"),
        (lambda: ACDC(Phases(final_dense=0.8)), r"`warmup` \+ `phase` .* must be at most 1"),
        (lambda: SignInCallback(update="riggle"), "`update` must be one of 'set', 'rigl', .*got 'riggle'"),
        (lambda: SignInCallback(update=3), "`update` must be one of .* or a class with arguments; got 3"),
        (lambda: SignInCallback(update="srigl", structure="2:4"), "SRigL needs structure='constant-fan-in', got '2:4'"),
        (lambda: SignInCallback(update="acdc", mask="snip"), "ACDC starts from all weights, so `mask` and `mask_from`"),
        (lambda: SignInCallback(update="gmp", mask_from="x.ckpt"), "GMP starts from all weights, so `mask` and"),
    ],
)
def test_bad_arguments_are_refused_at_once(make, text):
    with pytest.raises(ValueError, match=text):
        make()


class Steps(Schedule):
    """Given places."""

    def __init__(self, *places: int) -> None:
        self.places = places

    def steps(self, total):
        return self.places


class Sharded(Small):
    def configure_optimizers(self):
        return ZeroRedundancyOptimizer(self.parameters(), torch.optim.SGD, lr=0.1)


class With(Small):
    """With an optimizer of one's own."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        return self.make(self.parameters())


@pytest.mark.parametrize(
    ("arguments", "model", "text"),
    [
        (
            {"update": SET(Constant(100))},
            None,
            r"SET\(schedule=Constant\(every_n_steps=100.*never changes the mask in a run of 40 optimizer",
        ),
        (
            {"update": MEST(Stages(29))},
            None,
            r"Stages\(every.*=29, .* gives MEST no update with an amount of 0.* of 40 .* at step 29, has 0.5. L",
        ),
        (
            {"update": MEST(Cosine(4))},
            None,
            r"Cosine\(every.*=4, .* at step 28, has 0.01093. Lower `every_n_steps`, or use a schedule that ends",
        ),
        ({"update": ACDC(Constant(4))}, None, "`schedule` of AC/DC must have an amount of 0 at its last step, 28 of"),
        ({"update": SET(Steps(3, 3))}, None, r"`steps` of Steps\(places=\(3, 3\)\) must rise from 0 or later, got 3"),
        ({"update": SET(Steps(-1))}, None, "must rise from 0 or later, got -1 after -1"),
        ({"update": SET(Steps(3, 40))}, None, "would come at step 40, after a run of 40 optimizer steps. Train longer"),
        (
            {"update": MEST(Stages(4), mutation=0.31, soft_memory_bound=False)},
            None,
            "`mutation`=0.31 would drop all of a density of 0.3",
        ),
        (
            {"update": MEST(Stages(4)), "structure": "1:3", "exclude": ["conv.*"], "sparsity": 2 / 3},
            None,
            "MEST has no room to grow",
        ),
        (
            {"update": GMP(Cubic(4), initial_sparsity=0.8)},
            None,
            "`initial_sparsity`=0.8 is above the sparsity of the run, 0.6997",
        ),
        (
            {"update": RigL(Cosine(4)), "parametrization": "str"},
            None,
            "RigL lets weights come back at θ = 0, where the param.* of conv",
        ),
        ({"update": ACDC(), "parametrization": "powerprop"}, None, "ACDC lets weights come back at θ = 0"),
        (
            {"update": RigL(Cosine(4)), "rescale_momentum": "keep"},
            lambda: With(lambda parameters: torch.optim.Rprop(parameters)),
            "Rprop cannot follow a mask that moves: its state 'step_size' starts from 0.01",
        ),
        (
            {"update": RigL(Cosine(4)), "rescale_momentum": "keep"},
            lambda: With(lambda parameters: torch.optim.ASGD(parameters)),
            "ASGD cannot follow a mask that moves: its state 'ax' starts from 1 and not from 0",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(arguments, model, text):
    module = seeded() if model is None else model()
    run = trainer(callback(**arguments))
    with pytest.raises(ValueError, match=text):
        run.fit(module, loader())
    assert module.losses == []
    assert type(module.fc1) is nn.Linear  # plain again


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"The length of the run is unknown.*`max_epochs`.*or `max_steps`"):
        trainer(callback(update="rigl", rescale_until=3), epochs=-1).fit(seeded(), loader())


def test_updates_need_the_factors_in_an_optimizer():
    net = sparsify(nn.Linear(4, 4), sparsity=0.5)
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    with pytest.raises(ValueError, match="`optimizers` train no sparse weight: build them inside"):
        MaskUpdates(net, "rigl", [other], total_steps=10)


class Lottery(UpdateRule):
    """A rule of a user: every mask is drawn anew, twice."""

    schedule = Steps(1, 2)

    def masks(self, layers, moment):
        for name, layer in layers.items():
            yield name, layer.grow(layer.mask & False, moment.random(layer.theta), layer.kept)


@pytest.mark.parametrize("update", [Lottery(), Lottery, "tests.updates.test_updates_refused.Lottery"])
def test_a_rule_of_ones_own_runs_under_its_import_path(update):
    seeded()
    runner = trainer(callback(update=update), epochs=1)
    runner.fit(Small(), loader())
    assert 0.3 < runner.callback_metrics["signin/mask_change"] < 0.95


@pytest.mark.parametrize("storage", ["auto", "compact", "dense"])
def test_plain_pytorch_needs_no_lightning(storage):
    net = sparsify(nn.Linear(20, 10), sparsity=0.8, storage=storage)
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
    updates = MaskUpdates(net, RigL(Cosine(5)), [optimizer], total_steps=20, storage=storage)
    for _ in range(20):
        updates.before_batch()
        optimizer.zero_grad()
        net(torch.randn(8, 20)).sum().backward()
        updates.before_step(optimizer)
        optimizer.step()
    updates.close()
    assert int((net.weight != 0).sum()) == 40


def rule(name: str, schedule: str, **arguments: object) -> dict:
    """A rule and its schedule, as in YAML."""
    when = {"class_path": f"lightning_signin.updates.{schedule}", "init_args": arguments}
    return {"class_path": f"lightning_signin.updates.{name}", "init_args": {"schedule": when}}


@pytest.mark.parametrize(
    ("update", "parametrization"),
    [(name, "plain") for name in UPDATES if name != "mest"]
    + [
        (rule("MEST", "Stages", every_n_steps=40, stages=[[0, 1.0], [0.5, 0.0]]), "pilot"),
        (rule("RigL", "Cubic", every_n_steps=2, since=0.1), "spred"),
        (None, {"class_path": "lightning_signin.parametrizations.STR", "init_args": {"s_init": -5, "sign_in": True}}),
    ],
    ids=str,
)
def test_yaml_names_rules_and_parametrizations(tmp_path, update, parametrization):
    from lightning_signin.cli.main import main

    arguments = {"update": update, "parametrization": parametrization, "sparsity": 0.8}
    config = {
        "trainer": {
            "max_epochs": 4,
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "default_root_dir": str(tmp_path),
            "callbacks": [{"class_path": "lightning_signin.SignInCallback", "init_args": arguments}],
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["fit", "--config", "mnist1d", "--config", str(path)])
    assert (tmp_path / "merged.safetensors").exists()


def test_command_line_refuses_a_rule_in_one_line(tmp_path):
    executable = Path(sys.executable).parent / "lightning-signin"
    option = "--trainer.callbacks.init_args.update=riggle"
    command = [str(executable), "fit", "--config", "digits", option]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "`update` must be one of 'set', 'rigl'" in done.stderr
    assert "Traceback" not in done.stderr
