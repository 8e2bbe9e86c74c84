"""How operators hand on the images of a batch: a rule each, for ``independence``.

A rule says where a result carries the images, or raises ``Mixed`` with the reason why they do not stay apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from subp_ext import Ref
from subp_ext.operators import ELEMENTWISE, OPERATORS

from .image_state import BATCH, COUNT, Call, Images, Mixed, Operand, State, refs_in

Rule = Callable[[Call], State]
_RULES: dict[str, Rule] = {}


def rule_of(op: str) -> Rule | None:
    """The rule of an operator; None if there is none."""
    record = OPERATORS.get(op)
    return _RULES.get(op) or (_elementwise if record is not None and record.shape is ELEMENTWISE else None)


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return add


def _dims(value: int | list[int] | None, ndim: int) -> tuple[int, ...]:
    """Dimensions from the first on; None and [] are all of them."""
    if value is None or value == []:
        return tuple(range(ndim))
    return tuple(dim % ndim for dim in (value if isinstance(value, list) else [value]))


def _aligned(operand: Operand, ndim: int) -> Images | None:
    """Where an operand carries the images once broadcast to `ndim` dimensions."""
    if not isinstance(operand.state, Images):
        return None
    return replace(operand.state, dim=operand.state.dim + ndim - len(operand.shape))


def _together(operands: Iterable[Operand], ndim: int) -> Images:
    """The one place where all operands carry the images that carry them at all."""
    places = {place for operand in operands if (place := _aligned(operand, ndim)) is not None}
    if len(places) != 1:
        raise Mixed("combines values that carry the images in different dimensions")
    return places.pop()


def _apart(state: Images, dims: Sequence[int], what: str) -> Images:
    if state.dim in dims:
        raise Mixed(what)
    return state


def _elementwise(call: Call) -> State:
    return _together(map(call.operand, refs_in(call.args.values())), len(call.out))


@_rule("type_as", "alias", "clone", "contiguous", "detach", "detach_copy", "lift_fresh", "lift_fresh_copy", "getitem")
@_rule("dropout", "feature_dropout", "alpha_dropout", "native_dropout", "zeros_like", "ones_like")
def _same(call: Call) -> State:
    return call.states[refs_in([call.args.get("self", call.args.get("input"))])[0].name]


# Dimensions, counted from the last, that an operator computes over: the images must be in an earlier one.
_LAST = dict.fromkeys(
    [
        "max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
        "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "tril", "triu",
    ],
    2,
) | {"avg_pool1d": 1, "linear": 1, "pixel_shuffle": 3, "pixel_unshuffle": 3}  # fmt: skip


def _over_last(count: int) -> Rule:
    def rule(call: Call) -> State:
        ndim = len(call.main.shape)
        return _apart(call.carried, range(ndim - count, ndim), "computes over the dimension that carries the images")

    return rule


_RULES.update({name: _over_last(count) for name, count in _LAST.items()})


@_rule("conv1d", "conv2d", "conv3d", "conv_transpose2d", "im2col", "col2im")
@_rule("group_norm", "native_group_norm", "instance_norm", "channel_shuffle", "native_channel_shuffle")
def _per_item(call: Call) -> State:
    """What treats every item of its first dimension alike, and alone."""
    if call.carried.dim != 0:
        raise Mixed("computes over the dimension that carries the images")
    return call.carried


@_rule("batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "native_batch_norm")
def _batch_norm(call: Call) -> State:
    fixed = isinstance(call.args.get("running_mean"), Ref) and not call.args.get("training", False)
    # Statistics of each channel are taken over all other dimensions.
    if (call.carried.dim == 1) is fixed:
        raise Mixed("normalises with statistics of all images" if not fixed else "has images for channels")
    return call.carried


@_rule("layer_norm", "native_layer_norm", "rms_norm")
def _layer_norm(call: Call) -> State:
    return _over_last(len(call.args["normalized_shape"]))(call)


@_rule("prelu")
def _prelu(call: Call) -> State:
    return _apart(call.carried, [1], "has images for channels")


def _along(argument: str, default: int) -> Rule:
    """What works along one dimension, and keeps it."""

    def rule(call: Call) -> State:
        dims = _dims(call.args.get(argument, default), len(call.main.shape))
        return _apart(call.carried, dims, "works along the dimension that carries the images")

    return rule


_rule("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum")(_along("dim", 0))
_rule("split", "split_with_sizes", "chunk", "narrow")(_along("dim", 0))
_rule("glu")(_along("dim", -1))
_rule("unfold")(_along("dimension", 0))


@_rule("flip", "roll")
def _moved(call: Call) -> State:
    dims = _dims(call.args.get("dims"), len(call.main.shape))
    return _apart(call.carried, dims, "moves images to other places of the batch")


@_rule("mean", "sum", "prod", "amax", "amin", "var", "std", "var_mean", "linalg_vector_norm", "argmax", "max", "min")
def _reduction(call: Call) -> State:
    if isinstance(call.args.get("other"), Ref):
        return _elementwise(call)
    dims = _dims(call.args.get("dim"), len(call.main.shape))
    state = _apart(call.carried, dims, "reduces over the dimension that carries the images")
    gone = 0 if call.args.get("keepdim", False) else sum(dim < state.dim for dim in dims)
    return replace(state, dim=state.dim - gone)


@_rule("unbind", "select")
def _without_dim(call: Call) -> State:
    (dim,) = _dims(call.args.get("dim", 0), len(call.main.shape))
    state = _apart(call.carried, [dim], "picks single images out of the batch")
    return replace(state, dim=state.dim - (dim < state.dim))


@_rule("slice")
def _slice(call: Call) -> State:
    dim, start = call.args.get("dim", 0), call.args.get("start")
    shape = call.main.shape
    if call.out == shape and start in (0, None) and call.args.get("step", 1) == 1:
        return call.main.state  # all of it, whatever `end` is
    if any(call.states[ref.name] is COUNT for ref in refs_in(call.args.values())):
        raise Mixed("computes with the number of images")
    return _apart(call.carried, _dims(dim, len(shape)), "picks single images out of the batch")


@_rule("slice_scatter", "select_scatter")
def _scatter(call: Call) -> State:
    into, source = call.main, call.operand(call.args["src"])
    (dim,) = _dims(call.args.get("dim", 0), len(into.shape))
    if source.shape == into.shape:
        return source.state  # all of it is replaced
    if len(source.shape) < len(into.shape):  # of select_scatter
        moved = source.state
        if isinstance(moved, Images):
            moved = replace(moved, dim=moved.dim + (moved.dim >= dim))
        source = Operand(moved, (*source.shape[:dim], 1, *source.shape[dim:]))
    state = _together([into, source], len(into.shape))
    return _apart(state, [dim], "writes to single images of the batch")


@_rule("view", "_unsafe_view", "reshape", "flatten", "unflatten", "unsqueeze")
def _reshape(call: Call) -> State:
    """Elements keep their row-major order: what stands before and after an image's index stays as large as it was."""
    state, shape = call.carried, call.main.shape
    before = math.prod(shape[: state.dim]) * state.outer
    after = math.prod(shape[state.dim + 1 :]) * state.inner
    dim = next((dim for dim, size in enumerate(call.out) if size > 0 and size % BATCH == 0), None)
    if dim is None:
        raise Mixed("has a shape that does not follow from the number of images")
    outer, lost = divmod(before, math.prod(call.out[:dim]))
    inner, lost_after = divmod(after, math.prod(call.out[dim + 1 :]))
    if lost or lost_after:
        raise Mixed("cuts the dimension that carries the images into parts of several images")
    return Images(dim, outer, inner)


@_rule("squeeze")
def _squeeze(call: Call) -> State:
    dims = _dims(call.args.get("dim"), len(call.main.shape))
    if call.main.shape[call.carried.dim] == BATCH:
        _apart(call.carried, dims, "drops the dimension that carries the images where there is one image")
    return _reshape(call)


@_rule("permute", "transpose", "t", "numpy_T")
def _permute(call: Call) -> State:
    order = list(range(len(call.main.shape)))
    if "dims" in call.args:
        order = list(_dims(call.args["dims"], len(order)))
    elif "dim0" in call.args:
        a, b = _dims([call.args["dim0"], call.args["dim1"]], len(order))
        order[a], order[b] = b, a
    else:
        order.reverse()
    return replace(call.carried, dim=order.index(call.carried.dim))


@_rule("expand", "expand_as")
def _expand(call: Call) -> State:
    if isinstance(call.main.state, Images):
        return _aligned(call.main, len(call.out))
    return _created(call)


@_rule("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
def _created(call: Call) -> State:
    """One value for all images, or a copy of it for each."""
    return Images(call.out.index(BATCH)) if BATCH in call.out else None


@_rule("repeat")
def _repeat(call: Call) -> State:
    own = (1,) * (len(call.out) - len(call.main.shape)) + call.main.shape
    times = [size // old for size, old in zip(call.out, own, strict=True)]
    state = _aligned(call.main, len(call.out))
    if state is not None:
        return replace(state, outer=state.outer * times[state.dim])
    return Images(times.index(BATCH), 1, own[times.index(BATCH)]) if BATCH in times else None


@_rule("repeat_interleave")
def _repeat_interleave(call: Call) -> State:
    (dim,) = _dims(call.args["dim"], len(call.main.shape))
    times = call.args["repeats"]
    if call.carried.dim != dim:
        return call.carried
    return replace(call.carried, inner=call.carried.inner * times)


@_rule("cat", "concat", "stack")
def _join(call: Call) -> State:
    operands = list(map(call.operand, call.args["tensors"]))
    state = _together(operands, len(operands[0].shape))
    if any(operand.state is None for operand in operands):
        raise Mixed("joins images with what is the same for all of them")
    (dim,) = _dims(call.args.get("dim", 0), len(call.out))
    if len(call.out) > len(operands[0].shape):  # stack
        return replace(state, dim=state.dim + (state.dim >= dim))
    return _apart(state, [dim], "joins along the dimension that carries the images")


@_rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _pad(call: Call) -> State:
    amounts, ndim = call.args["pad" if "pad" in call.args else "padding"], len(call.main.shape)
    padded = [ndim - 1 - at // 2 for at, amount in enumerate(amounts) if amount != 0]
    return _apart(call.carried, padded, "pads the dimension that carries the images")


@_rule("matmul", "mm", "bmm")
def _matmul(call: Call) -> State:
    return _product(call.main, call.operand(call.args.get("other", call.args.get("mat2"))))


@_rule("addmm", "baddbmm")
def _addmm(call: Call) -> State:
    a, b = (call.operand(call.args.get(f"mat{n}", call.args.get(f"batch{n}"))) for n in (1, 2))
    ndim = len(call.out)
    return _together([call.main, Operand(_product(a, b), call.out)], ndim)


def _product(a: Operand, b: Operand) -> Images:
    """The state of a product of matrices; one of them may be a vector that is the same for all images."""
    if len(b.shape) == 1 and b.state is None and isinstance(a.state, Images):
        return _apart(a.state, [len(a.shape) - 1], "sums over the dimension that carries the images")
    ndim = max(len(a.shape), len(b.shape))
    left, right = _aligned(a, ndim), _aligned(b, ndim)
    if min(len(a.shape), len(b.shape)) < 2:
        raise Mixed("multiplies by a vector, which no rule covers")
    if (left and left.dim == ndim - 1) or (right and right.dim == ndim - 2):
        raise Mixed("sums over the dimension that carries the images")
    state = _together([a, b], ndim)
    if left and right and state.dim >= ndim - 2:
        raise Mixed("combines values that carry the images in different dimensions")
    return state


@_rule("scaled_dot_product_attention")
def _attention(call: Call) -> State:
    names = ("query", "key", "value", "attn_mask")
    operands = [call.operand(call.args[name]) for name in names if isinstance(call.args.get(name), Ref)]
    state = _together(operands, len(call.out))
    return _apart(state, range(len(call.out) - 2, len(call.out)), "attends from one image to others")


@_rule("einsum")
def _einsum(call: Call) -> State:
    terms, _, result = call.args["equation"].replace(" ", "").partition("->")
    operands = list(map(call.operand, call.args["tensors"]))
    found = {
        (letters[operand.state.dim], operand.state.outer, operand.state.inner)
        for letters, operand in zip(terms.split(","), operands, strict=True)
        if isinstance(operand.state, Images)
    }
    if "." in terms or len(found) != 1:
        raise Mixed("combines values that carry the images in different dimensions")
    letter, outer, inner = found.pop()
    if letter not in result:
        raise Mixed("sums over the dimension that carries the images")
    return Images(result.index(letter), outer, inner)


@_rule("embedding")
def _embedding(call: Call) -> State:
    if call.operand(call.args["weight"]).state is not None:
        raise Mixed("takes a parameter that depends on the image")
    return call.operand(call.args["indices"]).state


@_rule("index_select", "gather")
def _select(call: Call) -> State:
    ndim = len(call.main.shape)
    taken = call.operand(call.args["index"])
    dims = _dims(call.args["dim"], ndim)
    state = call.main.state
    if not isinstance(state, Images) or taken.state not in (None, state):
        raise Mixed("combines values that carry the images in different dimensions")
    if taken.state is None and len(taken.shape) == ndim > 1:
        raise Mixed("picks single images out of the batch")
    return _apart(state, dims, "picks single images out of the batch")


@_rule("index")
def _index(call: Call) -> State:
    """Constant indices into other dimensions than that of the images."""
    state, indices = call.carried, call.args["indices"]
    used = [dim for dim, index in enumerate(indices) if index is not None]
    _apart(state, used, "picks single images out of the batch")
    shapes = [call.operand(indices[dim]).shape for dim in used]
    if used != list(range(used[0], used[-1] + 1)):
        raise Mixed("indexes dimensions that do not follow each other, which no rule covers")
    if any(dim < state.dim for dim in used):
        return replace(state, dim=state.dim - len(used) + max(map(len, shapes)))
    return state
