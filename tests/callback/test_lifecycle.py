"""From the first setup to the merge, however a fit ends, and what comes after."""

import copy

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint, OnExceptionCheckpoint
from torch import nn

from lightning_signin import masks, merge_, plain_view, rescale_, sparsify
from tests.small import Small, callback, copies, differing, loader, seeded, trainer


class At(Callback):
    """Calls a function after a number of batches."""

    def __init__(self, batch: int, function) -> None:
        self.batch, self.function = batch, function

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.fit_loop.total_batch_idx == self.batch:
            self.function(module)


def is_plain(module: nn.Module) -> bool:
    same_names = [n for n, _ in module.named_parameters()] == [n for n, _ in Small().named_parameters()]
    wrapped = {"configure_model", "configure_optimizers"} & module.__dict__.keys()
    return same_names and not wrapped and type(module.fc1) is nn.Linear and not masks(module)


def kept(module: nn.Module) -> list[int]:
    return [int(weight.count_nonzero()) for weight in (module.conv.weight, module.fc1.weight, module.fc2.weight)]


@pytest.mark.parametrize("storage", ["auto", "compact", "dense"])
def test_fit_ends_with_a_plain_sparse_module(storage):
    module = seeded()
    total = round(0.3 * (18 + 48 * 24 + 72))
    trainer(callback(storage=storage), epochs=1).fit(module, loader())
    assert is_plain(module)
    assert sum(kept(module)) == total


def test_merge_changes_no_output_bit():
    module, x, outputs = seeded(), torch.randn(5, 10), {}

    class Look(Callback):
        def on_train_end(self, trainer, module):
            with torch.no_grad():
                outputs["sparse"] = module.eval()(x)

    trainer(callback(), Look(), epochs=1).fit(module, loader())
    with torch.no_grad():
        assert torch.equal(module.eval()(x), outputs["sparse"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")], ids=["Ctrl-C", "exception"])
def test_interruption_merges_and_what_others_save_then_resumes(tmp_path, error):
    def interrupt(module):
        raise error

    whole = seeded()
    trainer(callback()).fit(whole, loader())
    module = seeded()
    saver = OnExceptionCheckpoint(tmp_path, "interrupted")
    with pytest.raises((SystemExit, RuntimeError)):
        trainer(callback(), At(16, interrupt), saver, enable_checkpointing=True).fit(module, loader())
    assert is_plain(module)
    saved = torch.load(saver.ckpt_path, weights_only=True)
    assert differing(dict(saved["state_dict"]), copies(module)) == []
    resumed = Small()
    trainer(callback()).fit(resumed, loader(), ckpt_path=saver.ckpt_path)
    assert differing(copies(whole), copies(resumed)) == []


def test_fit_twice_keeps_the_mask():
    module = seeded()
    sign_in = callback(mask="magnitude")
    runner = trainer(sign_in, epochs=1)
    runner.fit(module, loader())
    first = {name: value != 0 for name, value in module.state_dict().items() if "weight" in name}
    with torch.no_grad():
        for layer in (module.fc1, module.fc2):  # plainly trained meanwhile: now other weights are the largest
            layer.weight.add_(1)
    runner.fit_loop.max_epochs = 2
    runner.fit(module, loader())
    assert runner.current_epoch == 2
    assert is_plain(module)
    assert all(torch.equal(first[name], module.state_dict()[name] != 0) for name in ("fc1.weight", "conv.weight"))


def test_fit_then_test_the_best_then_fit(tmp_path):
    module = seeded()
    best = ModelCheckpoint(tmp_path, monitor="val_loss")
    runner = trainer(callback(), best, epochs=2, enable_checkpointing=True)
    runner.fit(module, loader(), loader())
    expected = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    before = kept(module)
    runner.test(module, loader(), ckpt_path="best", verbose=False)
    assert differing(dict(expected), copies(module)) == []
    runner.fit_loop.max_epochs = 3
    runner.fit(module, loader(), loader())
    assert is_plain(module)
    assert kept(module) == before


def test_second_model_gets_its_own_mask():
    sign_in, modules = callback(mask="magnitude"), [seeded(seed=1), seeded(seed=2)]
    for module in modules:
        expected = module.fc1.weight.detach().abs()
        trainer(sign_in, epochs=1).fit(module, loader())
        chosen = module.fc1.weight != 0
        assert expected[chosen].min() >= expected[~chosen].max()


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_verbs_leave_a_model_alone(verb):
    module = seeded()
    before = copies(module)
    getattr(trainer(callback()), verb)(module, loader())
    assert is_plain(module)
    assert differing(before, copies(module)) == []


def test_model_built_in_configure_model_is_sparse():
    class Late(Small):
        def configure_model(self):
            if not hasattr(self, "late"):
                self.late = nn.Linear(3, 30)
                self.last = nn.Linear(30, 3)

        def forward(self, x):
            return self.last(self.late(super().forward(x)))

    module = Late()
    trainer(callback(distribution="uniform"), epochs=1).fit(module, loader())
    assert 0 < int(module.late.weight.count_nonzero()) < 90


def test_learning_rate_finder_leaves_a_run_that_trains(tmp_path):
    module = seeded()
    module.lr = 0.1
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), module.lr)
    finder = LearningRateFinder(num_training_steps=5)
    runner = trainer(callback(), finder, epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
    runner.fit(module, loader())
    assert sum(kept(module)) == round(0.3 * 1242)


def test_checkpoint_of_mid_run_loads_strictly_into_the_plain_model(tmp_path):
    module, x = seeded(), torch.randn(4, 10)
    seen = {}

    def save(module):
        module.trainer.save_checkpoint(tmp_path / "mid.ckpt")
        module.trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
        twin = copy.deepcopy(module).eval()
        seen["outputs"] = twin(x)

    trainer(callback(), At(14, save), epochs=2).fit(module, loader())
    for name in ("mid.ckpt", "weights.ckpt"):
        plain = Small()
        plain.load_state_dict(torch.load(tmp_path / name, weights_only=True)["state_dict"], strict=True)
        assert torch.equal(plain.eval()(x), seen["outputs"])


def test_loader_gets_its_class_back():
    batches = loader()
    kind = type(batches)
    trainer(callback(), epochs=1).fit(seeded(), batches)
    assert type(batches) is kind


def test_fabric_trains_a_sparse_module():
    fabric = Fabric(accelerator="cpu")
    net = sparsify(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3)), sparsity=0.8)
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    wrapped, optimizer = fabric.setup(net, optimizer)
    losses = []
    for epoch in range(4):
        if epoch:
            rescale_(net, optimizers=[optimizer.optimizer], momentum="carry")
        for x, y in loader():
            loss = nn.functional.cross_entropy(wrapped(x), y)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    assert list(wrapped.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert int(merge_(net)[0].weight.count_nonzero()) + int(net[2].weight.count_nonzero()) == 52
