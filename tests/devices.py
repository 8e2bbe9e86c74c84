"""What would go wrong on a GPU, found without one: operands on two devices, and a host that waits for the device.

Fake tensors have a device and a shape, and no numbers. ``GPU`` is one of torch's device types that autograd serves from
the calling thread, so that backward passes run too; fake CUDA tensors have their forward pass alone without a GPU.
"""

from __future__ import annotations

import inspect
import textwrap
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

GPU, CUDA = torch.device("lazy", 0), torch.device("cuda", 0)
PACKAGE = Path(__file__).resolve().parent.parent / "subp_dist"
aten = torch.ops.aten

# Results whose size depends on numbers: the host has to know them.
_SIZED_BY_NUMBERS = {
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_consecutive, aten.unique_dim, aten.bincount,
    aten.equal,
}  # fmt: skip


class _Mode(FakeTensorMode):
    """Tensors of a copied model stay in the mode of its tensors."""

    def __deepcopy__(self, memo: dict) -> _Mode:
        return self


class MixedDevicesError(AssertionError):
    """An operator got operands of the host and of the device."""


class Watch(TorchDispatchMode):
    """Sees every operator of a ``with`` block.

    Attributes:
        waits: for each time that the host waits for the device, where in the package, and for which operator.
        sent: tensors that travelled to the device without a wait.

    Raises in the block:
        MixedDevicesError: see there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.sent = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        devices = [_kind(tensor.device) for tensor in tensors]
        if packet is aten._local_scalar_dense:
            if "device" in devices:
                self._note_wait(func)
            # Numbers that lead on: nothing differs, no gradient overflows, and nothing is divided by zero.
            is_overflow = "device" in devices and args[0].dtype == torch.float32
            return False if args[0].dtype == torch.bool else 0.0 if is_overflow else 1
        if packet in (aten._to_copy, aten.copy_):
            self._transfer(func, args, kwargs)
        elif {_kind(t.device) for t in tensors if t.dim() or t.device.type != "cpu"} == {"host", "device"}:
            found = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
            raise MixedDevicesError(f"{func} in {_place()}: {found}")
        elif "device" in devices and (packet in _SIZED_BY_NUMBERS or _picks_by_mask(packet, args)):
            self._note_wait(func)
        return func(*args, **kwargs)

    def _transfer(self, func, args, kwargs) -> None:
        if func.overloadpacket is aten.copy_:
            target, source = _kind(args[0].device), _kind(args[1].device)
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            source = _kind(args[0].device)
            target = _kind(kwargs["device"]) if kwargs.get("device") is not None else source
            non_blocking = kwargs.get("non_blocking", False)
        if (source, target) == ("host", "device") and non_blocking:
            self.sent += 1
        elif source != target:
            self._note_wait(func)

    def _note_wait(self, func) -> None:
        self.waits.append(f"{_place()}: {func}")


def _kind(device: torch.device) -> str:
    return "host" if device.type == "cpu" else "device"


def _picks_by_mask(packet, args) -> bool:
    """Whether an index is a mask, whose True ones have to be counted, unless a single value is put in their place."""
    if packet in (aten.index_put, aten.index_put_, aten._index_put_impl_) and args[2].numel() == 1:
        return False
    if packet not in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _place() -> str:
    """Where in the package the operator was called; else where the test called."""
    frames = traceback.extract_stack()
    own = [frame for frame in frames if PACKAGE in Path(frame.filename).parents]
    frame = own[-1] if own else frames[0]
    return f"{Path(frame.filename).name}:{frame.name}"


@contextmanager
def fake_device(default: torch.device | None = None) -> Iterator[Watch]:
    """Tensors without numbers, on any device, watched; new ones lie on ``default``."""
    watch = Watch()
    with _Mode(allow_non_fake_inputs=False), torch.device(default or "cpu"), watch:
        yield watch


def wait_counts(watch: Watch) -> Counter[str]:
    """How often the host waited, by function of the package."""
    return Counter(place.split(": ")[0] for place in watch.waits)


def mutate(monkeypatch, function: Callable, old: str, new: str) -> None:
    """Have a function of the package run changed source, until the test is over.

    Its code object is exchanged, so that all who have imported it run the change.
    """
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has {source.count(old)} times {old!r}"
    changed = source.replace(old, new)
    is_method = "." in function.__qualname__
    if is_method:  # super() refers to the class around it
        changed = f"class {function.__qualname__.split('.')[0]}:\n{textwrap.indent(changed, '    ')}"
    found: dict = {}
    exec(compile(f"from __future__ import annotations\n{changed}", "<mutation>", "exec"), function.__globals__, found)
    if is_method:
        found = vars(next(value for value in found.values() if isinstance(value, type)))
    monkeypatch.setattr(function, "__code__", inspect.unwrap(found[function.__name__]).__code__)
