# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled kernels behind thin functions that validate every shape, then run without the GIL.

Work items are split statically among threads and each owns its part of the output, so results are
bit-identical for every number of threads.
"""

from cython.parallel cimport prange
from libc.stdint cimport int32_t

import numpy as np


cdef extern from "kernels.h" nogil:
    ctypedef struct subp_kernel:
        const char *name
        int op
        int isa
        int32_t channels
        int32_t pixels
    int SUBP_ISA_COUNT
    int SUBP_ACT_COUNT
    int SUBP_OP_ubsconv
    int SUBP_OP_dwconv


cdef extern from "cpu.h" nogil:
    const char *const subp_cpu_features[]
    int subp_cpu_has(const char *feature)


cdef extern from "dispatch.h" nogil:
    ctypedef struct subp_kernel_set:
        const char *name
        const char *needs
        int usable
    const subp_kernel subp_kernel_table[]
    const int subp_kernel_count
    subp_kernel_set subp_kernel_set_at(int isa)
    const char *subp_activation_name(int activation)
    const subp_kernel *subp_find_kernel(int op, int isa, Py_ssize_t channels)


cdef extern from "conv.h" nogil:
    ctypedef struct subp_planes:
        Py_ssize_t height, width, pad_top, pad_left, stride_h, stride_w, phases
        const Py_ssize_t *phase_rows
        const Py_ssize_t *phase_cols
        Py_ssize_t plane_h, plane_w
    void subp_fill_planes(const subp_planes *p, const float *input, float *out)
    ctypedef struct subp_conv:
        int op, isa
        const float *planes
        Py_ssize_t batch, in_channels, plane_stride
        const Py_ssize_t *tap_offsets
        int32_t taps
        const float *values
        const int32_t *indices
        Py_ssize_t rows, kept, block, groups, out_channels
        const float *bias
        const float *residual
        float *out
        Py_ssize_t pitch, out_h, out_w
        int activation
    Py_ssize_t subp_conv_items(const subp_conv *call)
    void subp_conv_item(const subp_conv *call, Py_ssize_t item)


_OPERATORS = {"ubsconv": SUBP_OP_ubsconv, "dwconv": SUBP_OP_dwconv}


def cpu_features():
    """Returns {feature: whether this CPU and system can use it}."""
    found = {}
    cdef int i = 0
    while subp_cpu_features[i] != NULL:
        found[subp_cpu_features[i].decode()] = bool(subp_cpu_has(subp_cpu_features[i]))
        i += 1
    return found


def kernel_sets():
    """Returns the compiled kernel sets, worst first: dicts with name, needs and usable (on this CPU)."""
    sets = []
    for isa in range(SUBP_ISA_COUNT):
        entry = subp_kernel_set_at(isa)
        sets.append({"name": entry.name.decode(), "needs": entry.needs.decode(), "usable": bool(entry.usable)})
    return sets


def kernels():
    """Returns every kernel of the build: dicts with name, op, set, channels and pixels of a tile."""
    operators = {number: name for name, number in _OPERATORS.items()}
    sets = [entry["name"] for entry in kernel_sets()]
    return [
        {
            "name": subp_kernel_table[i].name.decode(),
            "op": operators[subp_kernel_table[i].op],
            "set": sets[subp_kernel_table[i].isa],
            "channels": subp_kernel_table[i].channels,
            "pixels": subp_kernel_table[i].pixels,
        }
        for i in range(subp_kernel_count)
    ]


def activations():
    """Returns the names of the activations the store can fuse."""
    return tuple(subp_activation_name(i).decode() for i in range(1, SUBP_ACT_COUNT))


def kernel_name(str op, str kernel_set, Py_ssize_t channels):
    """Returns the kernel that runs a tile of at most `channels` output channels."""
    return subp_find_kernel(_OPERATORS[op], _set_number(kernel_set), channels).name.decode()


def _set_number(str name):
    sets = kernel_sets()
    for number, entry in enumerate(sets):
        if entry["name"] == name and entry["usable"]:
            return number
    usable = [entry["name"] for entry in sets if entry["usable"]]
    raise ValueError(f"kernel set {name!r} is not one this CPU can run; available: {', '.join(usable)}")


def _activation_number(name):
    if name is None:
        return 0
    if name not in activations():
        raise ValueError(f"activation {name!r} is not known; expected None or one of {', '.join(activations())}")
    return 1 + activations().index(name)


def fill_planes(
    const float[:, :, ::1] image,  # IN [channels, height, width]
    const Py_ssize_t[:, ::1] phases,  # IN [phases, 2]: the row and column of each
    pad,  # (top, left)
    stride,  # (height, width)
    float[:, :, :, ::1] planes,  # OUT [channels, phases, plane_h, plane_w]
    int threads,
):
    """Writes padded planes, one per phase of the stride, for every channel."""
    cdef subp_planes p
    cdef Py_ssize_t channel, channels = image.shape[0], step = image.shape[1] * image.shape[2]
    cdef Py_ssize_t plane = planes.shape[1] * planes.shape[2] * planes.shape[3]
    assert planes.shape[0] == channels and planes.shape[1] == phases.shape[0] and phases.shape[1] == 2
    assert channels > 0 and step > 0 and plane > 0 and threads > 0
    assert min(pad) >= 0 and min(stride) >= 1 and np.min(phases) >= 0
    rows = np.ascontiguousarray(phases[:, 0])
    columns = np.ascontiguousarray(phases[:, 1])
    cdef const Py_ssize_t[::1] rows_view = rows
    cdef const Py_ssize_t[::1] columns_view = columns
    p.height, p.width = image.shape[1], image.shape[2]
    p.pad_top, p.pad_left = pad
    p.stride_h, p.stride_w = stride
    p.phases, p.phase_rows, p.phase_cols = phases.shape[0], &rows_view[0], &columns_view[0]
    p.plane_h, p.plane_w = planes.shape[2], planes.shape[3]
    cdef const float *source = &image[0, 0, 0]
    cdef float *target = &planes[0, 0, 0, 0]
    for channel in prange(
        channels, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1
    ):
        subp_fill_planes(&p, source + channel * step, target + channel * plane)


def convolve(
    str op,
    str kernel_set,
    const float[:, :, ::1] planes,  # IN [batch, in_channels, plane_stride]
    const Py_ssize_t[::1] tap_offsets,  # IN [taps]
    Py_ssize_t pitch,
    const float[:, :, :, ::1] values,  # IN [rows, kept, taps, block]
    const int32_t[:, ::1] indices,  # IN [rows, kept]; zeros for dwconv
    Py_ssize_t groups,
    bias,  # IN float32 [out_channels], or None
    residual,  # IN as out, or None
    activation,  # a name, or None
    float[:, :, :, ::1] out,  # OUT [batch, out_channels, out_h, out_w]
    int threads,
):
    """Runs a convolution over prepared planes: out = activation(conv(planes) + bias + residual).

    Raises:
        ValueError: an unknown kernel set or activation.
    """
    cdef subp_conv call
    cdef Py_ssize_t item, items
    cdef const float[::1] bias_view
    cdef const float[:, :, :, ::1] residual_view
    call.op, call.isa = _OPERATORS[op], _set_number(kernel_set)
    call.activation = _activation_number(activation)
    call.batch, call.in_channels, call.plane_stride = planes.shape[0], planes.shape[1], planes.shape[2]
    call.taps, call.pitch, call.groups = tap_offsets.shape[0], pitch, groups
    call.rows, call.kept, call.block = values.shape[0], values.shape[1], values.shape[3]
    call.out_channels, call.out_h, call.out_w = out.shape[1], out.shape[2], out.shape[3]
    # These hold for every caller in this package; memory safety rests on them, so they are checked, not assumed.
    run = (call.out_h - 1) * pitch + call.out_w
    assert planes.size and values.size and out.size and threads > 0 and groups > 0 and pitch >= call.out_w
    assert call.in_channels % groups == 0 and call.out_channels % groups == 0 and call.rows % groups == 0
    assert values.shape[2] == call.taps and indices.shape[0] == call.rows and indices.shape[1] == call.kept
    assert call.rows // groups == (call.out_channels // groups + call.block - 1) // call.block
    assert np.min(tap_offsets) >= 0 and np.max(tap_offsets) + run <= call.plane_stride
    assert np.min(indices) >= 0 and np.max(indices) < call.in_channels // groups
    assert op != "dwconv" or (call.kept == 1 and call.in_channels == groups)
    assert out.shape[0] == call.batch
    call.bias = call.residual = NULL
    if bias is not None:
        bias_view = bias
        assert bias_view.shape[0] == call.out_channels
        call.bias = &bias_view[0]
    if residual is not None:
        residual_view = residual
        assert residual.shape == np.shape(out)
        call.residual = &residual_view[0, 0, 0, 0]
    call.planes, call.tap_offsets, call.values = &planes[0, 0, 0], &tap_offsets[0], &values[0, 0, 0, 0]
    call.indices, call.out = &indices[0, 0], &out[0, 0, 0, 0]
    items = subp_conv_items(&call)
    for item in prange(
        items, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1
    ):
        subp_conv_item(&call, item)
