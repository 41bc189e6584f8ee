"""Contracts of `core/torch_internals.py`: a version of torch that moves one of its insides fails by its name."""

import copy
import sys
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.export import export
from torch.nn.utils import parametrize
from torch.optim import SGD
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from lightning_signin.core import torch_internals as insides


def parameters():
    layer, new = nn.Linear(2, 3), nn.Parameter(torch.zeros(3, 2))
    insides.registered_parameters(layer)["weight"] = new
    assert layer.weight is new
    assert list(insides.registered_parameters(layer)) == ["weight", "bias"]
    assert insides.registered_parameters(nn.Linear(2, 3, bias=False))["bias"] is None


def buffers():
    assert set(insides.registered_buffers(nn.BatchNorm1d(2))) == {"running_mean", "running_var", "num_batches_tracked"}
    assert insides.registered_buffers(nn.BatchNorm1d(2, track_running_stats=False))["running_mean"] is None


def modules():
    net, layer = nn.Sequential(nn.ReLU(), nn.ReLU()), nn.Tanh()
    insides.registered_modules(net)["1"] = layer
    assert list(net) == [net[0], layer]
    assert insides.registered_modules(net).pop("1") is layer
    assert len(net) == 1


def forward_hooks():
    layer = nn.ReLU()
    assert not insides.has_forward_hooks(layer)
    handle = layer.register_forward_hook(lambda *_: None)
    assert insides.has_forward_hooks(layer)
    handle.remove()
    assert not insides.has_forward_hooks(layer)


def forward_pre_hooks():
    layer = nn.ReLU()
    layer.register_forward_pre_hook(lambda *_: None)
    assert insides.has_forward_hooks(layer)


def saving(*_):
    raise AssertionError("It was removed.")


def state_dict_hooks():
    layer = nn.Linear(2, 2)
    layer.register_state_dict_post_hook(saving)
    twin = copy.deepcopy(layer)
    insides.remove_state_hooks(twin, saving)
    assert list(twin.state_dict()) == ["weight", "bias"]


def load_state_dict_pre_hooks():
    layer = nn.Linear(2, 2)
    layer.register_load_state_dict_pre_hook(saving)
    twin = copy.deepcopy(layer)
    insides.remove_state_hooks(twin, saving)
    twin.load_state_dict(layer.state_dict())


def metadata():
    state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    assert set(insides.versions_of(state)) == {"", "0"}
    del insides.versions_of(state)["0"]
    assert set(state._metadata) == {""}


def flat_weights():
    layer = nn.LSTM(2, 3)
    insides.drop_weights_list(layer)
    assert not hasattr(layer, "_flat_weights")
    insides.make_weights_list(layer)
    assert [id(weight) for weight in layer._flat_weights] == [id(weight) for weight in layer.parameters()]
    layer(torch.zeros(1, 1, 2))


def flat_weights_names():
    assert nn.LSTM(2, 3)._flat_weights_names == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]


def own_saving():
    class Saved(nn.Linear):
        pass

    calls = []
    insides.wrap_saving(Saved, lambda save: lambda *args: calls.append(args[1:]) or save(*args))
    layer = Saved(2, 3)
    state = nn.Sequential(layer).state_dict()
    assert list(state) == ["0.weight", "0.bias"]
    assert calls == [(state, "0.", False)]
    assert "_save_to_state_dict" not in vars(nn.Linear)


def flat_weights_methods():
    class Computed(nn.RNN):
        pass

    layer, read = Computed(2, 3), []
    before = layer(torch.ones(1, 1, 2))[0]
    insides.drop_weights_list(layer)
    insides.compute_weights_list(Computed, lambda self: read.append(1) or [2 * weight for weight in self.parameters()])
    for method in ("_init_flat_weights", "_update_flat_weights", "flatten_parameters"):
        assert callable(getattr(nn.RNN, method))
        assert getattr(layer, method)() is None
        assert method in vars(Computed)
    layer.double()  # torch lists the weights anew when it has moved them
    assert not torch.equal(layer(torch.ones(1, 1, 2).double())[0].float(), before)
    assert read


def step_hooks():
    optimizer, called = SGD([nn.Parameter(torch.ones(1))], lr=1.0), []
    optimizer.register_step_pre_hook(lambda *_: called.append(1))
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    hooks = insides.without_step_hooks()
    assert set(hooks) <= set(vars(optimizer))
    vars(optimizer).update(hooks)
    optimizer.step()
    assert not called


def nested_steps():
    class Twice(SGD):
        def step(self, closure=None):
            return super().step(closure)

    SGD([torch.ones(1)])
    optimizer, called = Twice([torch.ones(1)]), []
    optimizer.register_step_pre_hook(lambda its, *_: called.append(insides.is_within_step(its)))
    optimizer.step()
    assert called == [False, True]
    assert not insides.is_within_step(optimizer)


def first_hooks():
    optimizer, called = SGD([torch.ones(1)]), []
    optimizer.register_step_post_hook(lambda *_: called.append("second"))
    handle = insides.first_after_step(optimizer, lambda *_: called.append("first"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert called == ["first", "second", "second"]


def foreach():
    ones, twos = [torch.ones(2), torch.ones(1)], [torch.full((2,), 2.0), torch.full((1,), 2.0)]
    sixes = insides.multiplied_each(twos, [3 * one for one in ones])
    insides.multiply_each_(twos, torch.tensor(0.5))
    insides.add_each_(sixes, ones)
    insides.add_each_(sixes, ones, -4.0)
    assert [value.tolist() for value in (*twos, *sixes)] == [[1, 1], [1], [3, 3], [3]]


def functorch():
    found = []
    torch.func.vmap(lambda x: found.append(insides.is_transformed(x)) or x)(torch.ones(2))
    torch.func.grad(lambda x: found.append(insides.is_transformed(x)) or x.sum())(torch.ones(2))
    assert found == [True, True]
    assert not insides.is_transformed(torch.ones(2))


def tracing_context():
    found = []
    torch.compile(lambda x: x + 1, backend=lambda g, _: found.append(insides.TracingContext.try_get()) or g)(
        torch.ones(2)
    )
    assert None not in found
    assert len(found) == 1
    assert insides.TracingContext.try_get() is None


def forward_level():
    with forward_ad.dual_level():
        assert insides.is_transformed(torch.ones(2))
    assert not insides.is_transformed(torch.ones(2))


def tracing_state():
    found = []
    torch.jit.trace(lambda x: (found.append(insides.is_transformed(x)), 2 * x)[1], torch.ones(2), check_trace=False)
    assert found.pop()
    assert not insides.is_transformed(torch.ones(2))


def swapping():
    class Seen(nn.Module):
        callers: ClassVar[list[bool]] = []

        @property
        def weight(self):
            Seen.callers.append(insides.is_functional_call(sys._getframe(1), "weight"))
            return torch.ones(1)

        @weight.setter
        def weight(self, value):
            pass

        def forward(self):
            return self.weight

    class Told(Seen):
        def __setattr__(self, name, value):
            Seen.callers.append(insides.is_functional_call(sys._getframe(1), "weight"))
            super().__setattr__(name, value)

    layer = Seen()
    torch.func.functional_call(layer, {"weight": torch.zeros(1)}, ())
    assert Seen.callers.count(False) == 1  # the read in `forward`
    layer = Told()
    Seen.callers.clear()
    torch.func.functional_call(layer, {"weight": torch.zeros(1)}, ())
    assert Seen.callers.count(False) == 1
    Seen.callers.clear()
    layer.weight = layer.weight
    assert Seen.callers == [False, False]
    assert not insides.is_functional_call(None, "weight")


def empty_parametrized():
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", nn.Softplus())
    again = insides.empty_parametrized(nn.Linear, ["weight"])
    assert type(again).__name__ == type(layer).__name__
    again.__setstate__(layer.__dict__)
    assert torch.equal(again.weight, layer.weight)
    assert parametrize.is_parametrized(again, "weight")


class Asking(torch.autograd.Function):
    found = ()

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Asking.found += (insides.is_transformed(gradient),)
        return gradient


def legacy_batched():
    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(Asking.apply(x), x, torch.eye(2), is_grads_batched=True)
    torch.autograd.grad(Asking.apply(x).sum(), x)
    assert Asking.found == (True, False)


def storage():
    tensor = torch.ones(2, 2)
    assert insides.storage_id(tensor) == insides.storage_id(tensor[1:].t()) != insides.storage_id(torch.ones(2, 2))
    meta = torch.ones(2, device="meta")
    assert insides.storage_id(meta) == insides.storage_id(meta[1:]) != insides.storage_id(meta.clone())


class Seen(insides.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(insides.operation_of(func))
        return func(*args, **(kwargs or {}))


def overload_packet():
    with Seen() as seen:
        torch.mm(torch.ones(2, 2), torch.ones(2, 2))
    (operation,) = seen.operations[-1:]
    assert operation in FlopCounterMode(display=False).flop_registry
    assert operation.__name__ == "mm"


def schema():
    class Relu(nn.Module):
        def forward(self, x):
            return (x + 1).relu_()

    calls = [node for node in export(Relu(), (torch.ones(2),)).graph.nodes if node.op == "call_function"]
    add, relu = (insides.schema_of(node) for node in calls)
    assert [argument.name for argument in add.arguments] == ["self", "other", "alpha"]
    assert [add.is_mutable, relu.is_mutable] == [False, True]
    assert all(isinstance(node.target, insides.OpOverload) for node in calls)
    assert torch.ops.aten.view.default.is_view


def iterator():
    loader = DataLoader(range(2), num_workers=1, persistent_workers=True)
    assert insides.worker_iterator(loader) is None
    iter(loader)
    workers = insides.worker_iterator(loader)
    assert workers is iter(loader)
    insides.set_worker_iterator(loader, None)
    assert iter(loader) is not workers


def convolutions():
    for dim in (1, 2, 3):
        plain, turned = getattr(nn, f"Conv{dim}d")(2, 4, 1), getattr(nn, f"ConvTranspose{dim}d")(2, 4, 1)
        assert isinstance(plain, insides.ConvNd)
        assert plain.weight.shape[:2] == (4, 2)
        assert isinstance(turned, insides.ConvTransposeNd)
        assert turned.weight.shape[:2] == (2, 4)
        # The first class that is known decides.
        assert type(turned).__mro__.index(insides.ConvTransposeNd) < type(turned).__mro__.index(insides.ConvNd)


def pytree():
    tree = ({"a": 1}, [2, (3,)])
    assert insides.tree_leaves(tree) == [1, 2, 3]
    assert insides.tree_map(lambda leaf: -leaf, tree) == ({"a": -1}, [-2, (-3,)])
    assert insides.tree_leaves(one := object()) == [one]


def grouped_mm():
    has_it = tuple(int(part) for part in VERSION.split(".")[:2]) >= (2, 10)  # at the latest
    assert insides.GROUPED_MM is torch.ops.aten._grouped_mm if has_it else True


def holding():
    parameter = nn.Parameter(torch.zeros(2, 3))
    assert insides.can_hold(parameter, torch.zeros(4, dtype=torch.float64))
    assert not insides.can_hold(parameter, torch.zeros(2, 3).to_sparse())
    assert not insides.can_hold(parameter, torch.zeros(2, 3, device="meta"))


def tensor_hooks():
    parameter, hook, after = nn.Parameter(torch.zeros(2)), (lambda gradient: None), (lambda parameter: None)
    assert (list(insides.gradient_hooks(parameter)), list(insides.post_accumulate_hooks(parameter))) == ([], [])
    parameter.register_hook(hook)
    parameter.register_post_accumulate_grad_hook(after)
    assert list(insides.gradient_hooks(parameter)) == [hook]
    assert list(insides.post_accumulate_hooks(parameter)) == [after]


def versions():
    tensor = torch.zeros(2)
    before = insides.version_of(tensor)
    tensor[:1].add_(1)
    assert insides.version_of(tensor) > before


class Described(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with insides.without_torch_function():
            value = func(*args, **(kwargs or {}))
        return value if func in insides.TENSOR_METADATA else (func, value)


def torch_functions():
    tensor = torch.zeros(2, 3).as_subclass(Described)
    assert (tensor.shape, tensor.ndim, tensor.dtype, len(tensor), tensor.numel()) == ((2, 3), 2, torch.float32, 2, 6)
    assert tensor.data[0] == torch.Tensor.data.__get__
    assert tensor.sum()[0] == torch.Tensor.sum


def parametrized_class():
    layer = nn.Linear(2, 2)
    twin = copy.deepcopy(layer)
    for each in (layer, twin):
        parametrize.register_parametrization(each, "weight", nn.Identity())
    assert type(layer).__bases__[0] is nn.Linear
    assert "weight" in vars(type(layer))
    assert type(layer) is not type(twin)
    assert type(copy.deepcopy(layer)) is type(layer)
    assert list(layer.parametrizations.weight.state_dict()) == ["original"]


def compiled():
    net = nn.Linear(2, 2)
    assert insides.compiled_module(net) is None
    assert insides.compiled_module(torch.compile(net, backend="eager")) is net


def writes():
    norm = nn.BatchNorm1d(2)
    before = [insides.version_of(buffer) for buffer in norm.buffers()]
    norm.eval()(torch.randn(3, 2))
    assert before == [insides.version_of(buffer) for buffer in norm.buffers()]
    norm.train()(torch.randn(3, 2))
    assert sum(before) < sum(insides.version_of(buffer) for buffer in norm.buffers())


def watched():
    assert not insides.is_watched()
    with FlopCounterMode(display=False):
        assert insides.is_watched()
    assert not insides.is_watched()


CONTRACTS = {
    "the number of writes to a tensor": writes,
    "the module that was compiled": compiled,
    "nn.Module._parameters": parameters,
    "nn.Module._buffers": buffers,
    "nn.Module._modules": modules,
    "nn.Module._forward_hooks": forward_hooks,
    "nn.Module._forward_pre_hooks": forward_pre_hooks,
    "nn.Module._state_dict_hooks": state_dict_hooks,
    "nn.Module._load_state_dict_pre_hooks": load_state_dict_pre_hooks,
    "nn.Module._save_to_state_dict": own_saving,
    "state_dict._metadata": metadata,
    "nn.RNNBase._flat_weights": flat_weights,
    "nn.RNNBase._flat_weights_names": flat_weights_names,
    "nn.RNNBase._init_flat_weights, _update_flat_weights, flatten_parameters": flat_weights_methods,
    "Optimizer._optimizer_step_pre_hooks, _optimizer_step_post_hooks": step_hooks,
    "Optimizer._optimizer_step_post_hooks.move_to_end": first_hooks,
    "Optimizer.profile_hook_step": nested_steps,
    "torch._foreach_mul, _foreach_mul_, _foreach_add_": foreach,
    "torch._C._are_functorch_transforms_active": functorch,
    "torch.autograd.forward_ad._current_level": forward_level,
    "torch._C._functorch.is_legacy_batchedtensor": legacy_batched,
    "torch._C._get_tracing_state": tracing_state,
    "torch.nn.utils._named_member_accessor.swap_tensor": swapping,
    "torch.nn.utils.parametrize._inject_new_class, _inject_property": empty_parametrized,
    "UntypedStorage._cdata": storage,
    "OpOverload._overloadpacket, torch.utils._python_dispatch.TorchDispatchMode": overload_packet,
    "OpOverload._schema, torch._ops.OpOverload": schema,
    "DataLoader._iterator": iterator,
    "torch.nn.modules.conv._ConvNd, _ConvTransposeNd": convolutions,
    "torch.utils._pytree.tree_leaves, tree_map": pytree,
    "torch.ops.aten._grouped_mm": grouped_mm,
    "torch._has_compatible_shallow_copy_type": holding,
    "Tensor._backward_hooks, _post_accumulate_grad_hooks": tensor_hooks,
    "Tensor._version": versions,
    "torch._C._len_torch_dispatch_stack": watched,
    "torch._C.DisableTorchFunctionSubclass, Tensor.shape.__get__ and others": torch_functions,
    "the class that parametrize makes": parametrized_class,
    "torch._guards.TracingContext": tracing_context,
}
VERSION = torch.__version__.partition("+")[0]


@pytest.mark.parametrize("name", CONTRACTS, ids=lambda name: f"{name} of torch {VERSION}")
def test_torch_has(name):
    CONTRACTS[name]()
