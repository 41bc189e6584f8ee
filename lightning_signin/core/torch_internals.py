"""The internals of torch that this package reads and replaces; each function says why it is needed.

If a version of torch moves one, tests/core/test_torch_internals.py names it. Two attributes are read where
they belong, since a call would cost in every forward of a layer: `_flat_weights_names` in core/layer_forward.py and
`_buffers` in export/sparse/linear.py.

What replaces something in torch, and where that is undone (for Lightning see callback/lightning_internals.py):

- The class that `parametrize` makes for a layer: `forward`, and the list of weights of recurrent layers with its
  methods (core/layer_forward.py); the properties of weights, and how a layer is set, saved, pickled and
  scripted (core/layer_class.py). The class goes with the parametrization, in `merge_` (verbs/model.py).
- ``append`` of the list that `parametrize` makes for a weight (core/layer_class.py). The list goes with it.
- The dict of a layer's own parameters, by one that says which are not in it: `refuse_hooks` (core/layer_class.py),
  until the layer is plain (core/plain_layer.py).
- State dict hooks of a layer: `install_plain_state` (core/state_dict.py), until `merge_`.
- Class, parameters and children of a layer, for a while: `PlainLayer.show`, `PlainLayer.restore` (core/plain_layer.py).
- The class of the plain parameter of a sparse weight: `set_aside`, `shown` (core/plain_parameter.py), until `merge_`.
- `Optimizer.add_param_group`, and hooks around all optimizers' steps: `plain_view` (core/plain_view.py), until its end.
- Methods, properties and the deep copy of that class, too: `LiveView.attached` (core/live_view.py), until a fit ends.
- The class of a training loader, with another ``__iter__``: `Recorder`, until `Recorder.detach` (randomness/replay.py).
- The workers of a loader that keeps them: `LightningData` (callback/scoring/data.py), until its `close`.
- Hooks around an optimizer's step: `AroundSteps` (core/around_steps.py), until its `remove`.
- Of copies that are thrown away or are the result, never undone: the attributes of an optimizer's twin
  (core/optimizer_trial.py), `zero_grad` and `step` of modules and optimizers that are scored
  (callback/scoring/trainer.py), layers of a copy for inference (export/sparse/convert.py).
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import TracingContext
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd as ConvNd
from torch.nn.modules.conv import _ConvTransposeNd as ConvTransposeNd
from torch.nn.utils._named_member_accessor import swap_tensor
from torch.nn.utils.parametrize import _inject_new_class, _inject_property
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

__all__ = ["ConvNd", "ConvTransposeNd", "OpOverload", "TorchDispatchMode", "TracingContext", "tree_leaves", "tree_map"]

# The product with the experts of a mixture, of which torch counts no operations; it has no public name.
GROUPED_MM = getattr(torch.ops.aten, "_grouped_mm", None)

_GOT = "shape dtype device layout ndim requires_grad is_leaf grad_fn is_meta is_cpu is_cuda is_sparse itemsize nbytes"
# What reads a tensor's description, as `__torch_function__` gets it, and not its values.
TENSOR_METADATA = {
    *(getattr(Tensor, name).__get__ for name in _GOT.split()),
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.__len__, Tensor.element_size),
    *(Tensor.is_floating_point, Tensor.is_complex, Tensor.get_device, Tensor.__hash__),
}


def registered_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The parameters of a module without those of its children, in their order and to be changed."""
    return module._parameters


def set_registered_parameters(module: nn.Module, parameters: dict[str, nn.Parameter | None]) -> None:
    """Let a module hold its own parameters in another dict."""
    vars(module)["_parameters"] = parameters


def registered_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """The buffers of a module without those of its children; unlike `named_buffers`, with those that are None."""
    return module._buffers


def registered_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """The children of a module, to be changed; unlike `named_children`, each as often as it is used."""
    return module._modules


def compiled_module(module: nn.Module) -> nn.Module | None:
    """The module that `torch.compile` has wrapped; None for any other. Importing torch's compiler takes seconds."""
    compiler: Any = sys.modules.get("torch._dynamo.eval_frame")
    return module._orig_mod if compiler is not None and isinstance(module, compiler.OptimizedModule) else None


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether hooks run around a module's forward; torch has no public way to ask."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def remove_state_hooks(module: nn.Module, *functions: Callable[..., Any]) -> None:
    """Remove functions from the hooks on saving and loading: a deep copy has them without handles to remove them by."""
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in functions:
                del hooks[key]


def wrap_saving(made_by_torch: Any, wrapped: Callable[[Any], Any]) -> None:
    """Let layers of a class save their own tensors with another method, made from the one they have or inherit."""
    made_by_torch._save_to_state_dict = wrapped(made_by_torch._save_to_state_dict)


def versions_of(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The versions of the modules that wrote a state dict, by prefix; torch keeps them in an attribute of it."""
    return getattr(state_dict, "_metadata", {})


def make_weights_list(layer: nn.RNNBase) -> None:
    """Make a recurrent layer rebuild its list of weights; on CUDA they become one block of memory again."""
    layer._init_flat_weights()


def list_weights(layer: nn.RNNBase) -> None:
    """Let a recurrent layer list its weights as they are, wherever their memory is."""
    layer.__dict__["_flat_weights"] = [registered_parameters(layer).get(name) for name in layer._flat_weights_names]


def drop_weights_list(layer: nn.Module) -> None:
    """Drop the references to its weights that a recurrent layer keeps; other layers are left alone."""
    layer.__dict__.pop("_flat_weights", None)


def compute_weights_list(made_by_torch: Any, listed: Callable[[Any], list[Tensor | None]]) -> None:
    """Let recurrent layers of a class compute the list of their weights when it is read, and never store it."""
    made_by_torch._flat_weights = property(listed, lambda self, values: None)
    for method in ("_init_flat_weights", "_update_flat_weights", "flatten_parameters"):
        setattr(made_by_torch, method, lambda self: None)


def can_hold(parameter: Tensor, values: Tensor) -> bool:
    """Whether ``parameter.data = values`` is possible: not across kinds of devices such as XLA, nor with DTensors."""
    return torch._has_compatible_shallow_copy_type(parameter, values) and type(values) in (Tensor, nn.Parameter)


def gradient_hooks(parameter: Tensor) -> Iterable[Callable[..., Any]]:
    """What `register_hook` has given to a parameter; torch has no public way to ask."""
    return (parameter._backward_hooks or {}).values()


def post_accumulate_hooks(parameter: Tensor) -> Iterable[Callable[..., Any]]:
    """What `register_post_accumulate_grad_hook` has given to a parameter."""
    return (parameter._post_accumulate_grad_hooks or {}).values()


def version_of(tensor: Tensor) -> int:
    """A number that each change of a tensor in place increases."""
    return tensor._version


def without_torch_function() -> Any:
    """Within this context, subclasses of tensors are ordinary tensors."""
    return torch._C.DisableTorchFunctionSubclass()


def without_step_hooks() -> dict[str, Any]:
    """The attributes of an optimizer to which no hook around its step was given."""
    return {"_optimizer_step_pre_hooks": OrderedDict(), "_optimizer_step_post_hooks": OrderedDict()}


def multiplied_each(tensors: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Multiply two lists of tensors pairwise in one call, as torch's optimizers do, through private names."""
    return list(torch._foreach_mul(tensors, others))


def multiply_each_(tensors: list[Tensor], by: Any) -> None:
    """Multiply each by a number or a scalar tensor, in place; see `multiplied_each`."""
    torch._foreach_mul_(tensors, by)


def add_each_(tensors: list[Tensor], others: list[Tensor], times: float = 1.0) -> None:
    """Add to each that of another list, times a number, in place; see `multiplied_each`."""
    torch._foreach_add_(tensors, others, alpha=times)


def first_after_step(optimizer: Optimizer, hook: Callable[..., None]) -> RemovableHandle:
    """Call a hook after each step of an optimizer, before all others; torch has no public way to be the first."""
    handle = optimizer.register_step_post_hook(hook)
    hooks: Any = optimizer._optimizer_step_post_hooks
    hooks.move_to_end(handle.id, last=False)
    return handle


def is_within_step(optimizer: Optimizer) -> bool:
    """Whether a hook runs in the step of a base class, which the step of a subclass has called: it has run before."""
    hooked, frame, depth = Optimizer.profile_hook_step(id).__code__, sys._getframe(1), 0
    while frame is not None and depth < 2:
        depth += frame.f_code is hooked and frame.f_locals["self"] is optimizer
        frame = frame.f_back  # type: ignore[assignment]
    return depth == 2


def is_transformed(tensor: Tensor) -> bool:
    """Whether a compiler, tracer, `torch.func`, forward-mode AD or `vmap` needs plain operations, nothing in place."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def is_watched() -> bool:
    """Whether a dispatch mode is at work, which counts or records operations and expects those of the plain layer."""
    return torch._C._len_torch_dispatch_stack() > 0


def is_functional_call(frame: FrameType | None, attribute: str) -> bool:
    """Whether this is the code of `functional_call`, which swaps tensors by the statements that assign weights."""
    return frame is not None and frame.f_code is swap_tensor.__code__ and frame.f_locals["name"] == attribute


def empty_parametrized(plain: type[nn.Module], attributes: Iterable[str]) -> nn.Module:
    """A module without any state, of the class that `parametrize` makes for these attributes of a plain class."""
    module = plain.__new__(plain)
    _inject_new_class(module)
    for attribute in attributes:
        _inject_property(module, attribute)
    return module


def storage_id(tensor: Tensor) -> int:
    """A number of the memory that a tensor shares with its views; unlike the address, meta tensors have it as well."""
    return tensor.untyped_storage()._cdata


def operation_of(func: Any) -> Any:
    """The operation of which a dispatched function is one overload: tables such as torch's FLOP formulas go by it."""
    return func._overloadpacket


def schema_of(node: Node) -> Any:
    """The names of the arguments of a traced operation, and whether it writes into one."""
    return node.target._schema  # type: ignore[union-attr]


def worker_iterator(loader: DataLoader[Any]) -> Any:
    """The iterator that holds the workers of a loader with ``persistent_workers``; None before there are any."""
    return loader._iterator


def set_worker_iterator(loader: DataLoader[Any], iterator: Any) -> None:
    """Give a loader other workers, or None: it makes new ones."""
    loader._iterator = iterator
