# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled kernels behind thin functions that validate every shape, then run without the GIL.

Work items are split statically among threads and each owns its part of the output, so results are
bit-identical for every number of threads.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t

import numpy as np


cdef extern from "kernels.h" nogil:
    ctypedef struct subp_kernel:
        const char *name
        int op
        int isa
        int32_t channels
        int32_t pixels
    ctypedef struct subp_pool:
        Py_ssize_t height, width, out_h, out_w
        Py_ssize_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left
        int average
        const float *row_counts
        const float *column_counts
    ctypedef void (*subp_halve_fn)(const float *input, Py_ssize_t in_step, Py_ssize_t rows, Py_ssize_t count, float *out,
                                   Py_ssize_t out_step) noexcept nogil
    int SUBP_ISA_COUNT
    int SUBP_ACT_COUNT
    int SUBP_OP_ubsconv
    int SUBP_OP_dwconv


cdef extern from "omp.h" nogil:
    int omp_pause_soft
    int omp_pause_resource_all(int kind)


cdef extern from "cpu.h" nogil:
    const char *const subp_cpu_features[]
    int subp_cpu_has(const char *feature)


cdef extern from "dispatch.h" nogil:
    ctypedef struct subp_kernel_set:
        const char *name
        const char *needs
        int usable
        float (*peak)(Py_ssize_t rounds, float factor) noexcept nogil
        int peak_flops
        void (*pool)(const subp_pool *p, const float *input, float *out, float *row) noexcept nogil
        float (*mean)(const float *input, Py_ssize_t count) noexcept nogil
        void (*binary)(int multiply, const float *a, const float *b, int one_b, Py_ssize_t count, int activation,
                       float *out) noexcept nogil
        subp_halve_fn halve
        void (*activate)(const float *input, Py_ssize_t count, int activation, float *out) noexcept nogil
    const subp_kernel subp_kernel_table[]
    const int subp_kernel_count
    subp_kernel_set subp_kernel_set_at(int isa)
    const char *subp_activation_name(int activation)
    const subp_kernel *subp_find_kernel(int op, int isa, Py_ssize_t channels)


cdef extern from "conv.h" nogil:
    ctypedef struct subp_conv:
        int op
        Py_ssize_t in_channels, height, width, out_channels, out_h, out_w
        Py_ssize_t groups, rows, kept, block
        int32_t taps
        int activation
        subp_halve_fn halve
        const subp_kernel *const *kernels
        const float *values
        const int32_t *channel_offsets
        const float *bias
        Py_ssize_t copies
        const Py_ssize_t *copy_rows
        const Py_ssize_t *copy_cols
        Py_ssize_t pad_top, pad_left, stride_h, stride_w, band, plane_rows, channel_stride
        const Py_ssize_t *tap_offsets
        Py_ssize_t row_step, pixel_step, tile_pixels
        int pixels_outside
    ctypedef struct subp_conv_arrays:
        const float *x
        const float *residual
        float *out
    Py_ssize_t subp_conv_passes(const subp_conv *call)
    Py_ssize_t subp_conv_fills(const subp_conv *call)
    Py_ssize_t subp_conv_items(const subp_conv *call)
    void subp_conv_fill(const subp_conv *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                        float *planes)
    void subp_conv_item(const subp_conv *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t item,
                        const float *planes)
    void subp_conv_pass(const subp_conv *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, float *planes)


_OPERATORS = {"ubsconv": SUBP_OP_ubsconv, "dwconv": SUBP_OP_dwconv}


def release_threads():
    """Ends the threads that OpenMP keeps for the calling one; the next run starts new ones."""
    omp_pause_resource_all(omp_pause_soft)


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


def fma_loop(str kernel_set, Py_ssize_t rounds):
    """Runs a loop of independent multiply-adds in the widest registers of a set; returns how many FLOPs it took."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    with nogil:
        entry.peak(rounds, 0.5)
    return entry.peak_flops * rounds


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


def tiles(str op, str kernel_set, Py_ssize_t block):
    """Returns the (channels, pixels) of the tiles that a block row is computed in."""
    found = []
    while block > 0:
        kernel = subp_find_kernel(_OPERATORS[op], _set_number(kernel_set), block)
        found.append((kernel.channels, kernel.pixels))
        block -= kernel.channels
    return found


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


cdef class Convolution:
    """A convolution with packed weights for one size of input. Everything that memory safety rests on is checked here.

    Args:
        op: "ubsconv" or "dwconv".
        kernel_set: of `kernel_sets`.
        values: [rows, kept * taps * block], a row as `tiles` of [kept, taps, channels of the tile].
        indices: [rows, kept], channels within the group.
        block, groups: as the weight's.
        bias: [out_channels] or None.
        activation: a name or None.
        in_shape, out_shape: (channels, height, width).
        copies: [copies, 2] row and column of each copy of a channel; none to read the input in place.
        pad, stride: (height, width).
        band, plane_rows, channel_stride, row_step, pixel_step, tile_pixels, pixels_outside: see kernels/conv.h.
        tap_offsets: [taps].

    Raises:
        ValueError: an unknown kernel set or activation.
    """

    cdef subp_conv _call
    cdef const subp_kernel **_kernels
    cdef object _arrays  # keeps alive what _call points to
    cdef readonly Py_ssize_t scratch  # floats of planes

    def __init__(
        self,
        str op,
        str kernel_set,
        const float[:, ::1] values,
        const int32_t[:, ::1] indices,
        Py_ssize_t block,
        Py_ssize_t groups,
        bias,
        activation,
        in_shape,
        out_shape,
        copies,
        pad,
        stride,
        const Py_ssize_t[::1] tap_offsets,
        *,
        Py_ssize_t band,
        Py_ssize_t plane_rows,
        Py_ssize_t channel_stride,
        Py_ssize_t row_step,
        Py_ssize_t pixel_step,
        Py_ssize_t tile_pixels,
        bint pixels_outside,
    ):
        cdef subp_conv *call = &self._call
        cdef const float[::1] bias_view
        cdef const Py_ssize_t[::1] copy_rows, copy_cols
        cdef const int32_t[:, ::1] offsets
        call.op, call.activation = _OPERATORS[op], _activation_number(activation)
        call.in_channels, call.height, call.width = in_shape
        call.out_channels, call.out_h, call.out_w = out_shape
        call.rows, call.kept, call.taps = indices.shape[0], indices.shape[1], tap_offsets.shape[0]
        call.block, call.groups, call.copies = block, groups, len(copies)
        call.pad_top, call.pad_left = pad
        call.stride_h, call.stride_w = stride
        call.band, call.plane_rows, call.channel_stride = band, plane_rows, channel_stride
        call.row_step, call.pixel_step, call.tile_pixels = row_step, pixel_step, tile_pixels
        call.pixels_outside = pixels_outside
        assert min(*in_shape, *out_shape, *stride, groups, block, band, row_step, tile_pixels) > 0 and min(pad) >= 0
        assert values.size and indices.size and tap_offsets.size
        assert call.in_channels % groups == 0 and call.out_channels % groups == 0 and call.rows % groups == 0
        assert call.rows // groups == (call.out_channels // groups + block - 1) // block
        assert values.shape[0] == call.rows and values.shape[1] == call.kept * call.taps * block
        assert np.min(indices) >= 0 and np.max(indices) < call.in_channels // groups
        assert op != "dwconv" or (call.kept == block == 1 and call.in_channels == call.out_channels == groups)
        assert pixel_step > 0 and pixel_step % tile_pixels == 0  # the tiles are the same for every split
        assert np.min(tap_offsets) >= 0
        if call.copies:
            assert np.min(copies) >= 0 and plane_rows >= band
            assert channel_stride >= call.copies * plane_rows * call.out_w
            assert np.max(tap_offsets) + band * call.out_w <= call.copies * plane_rows * call.out_w
            rows = np.ascontiguousarray(copies[:, 0], np.intp)
            columns = np.ascontiguousarray(copies[:, 1], np.intp)
            copy_rows, copy_cols = rows, columns
            call.copy_rows, call.copy_cols = &copy_rows[0], &copy_cols[0]
            self.scratch = channel_stride * (1 if op == "dwconv" else call.in_channels)
        else:
            rows = columns = None
            assert tuple(in_shape[1:]) == tuple(out_shape[1:]) and channel_stride == call.height * call.width
            assert call.taps == 1 and tap_offsets[0] == 0
        self._find_kernels(_set_number(kernel_set))
        # The product would compete with the kernels' own for a port of the CPU.
        assert call.in_channels * channel_stride < 2**31
        offsets = np.asarray(indices) * np.int32(channel_stride)
        call.bias = NULL
        if bias is not None:
            bias_view = bias
            assert bias_view.shape[0] == call.out_channels
            call.bias = &bias_view[0]
        call.values, call.channel_offsets, call.tap_offsets = &values[0, 0], &offsets[0, 0], &tap_offsets[0]
        self._arrays = (values, offsets, tap_offsets, bias, rows, columns)

    cdef _find_kernels(self, int isa):
        cdef Py_ssize_t n = 0, count = 0
        self._kernels = <const subp_kernel **>PyMem_Malloc(self._call.block * sizeof(void *))
        if self._kernels == NULL:
            raise MemoryError()
        while n < self._call.block:
            self._kernels[count] = subp_find_kernel(self._call.op, isa, self._call.block - n)
            n += self._kernels[count].channels
            count += 1
        self._call.kernels = self._kernels
        self._call.halve = subp_kernel_set_at(isa).halve

    def __dealloc__(self):
        PyMem_Free(self._kernels)

    def run(
        self,
        const float[:, :, :, ::1] x,  # IN [batch, in_channels, height, width]
        residual,  # IN as out, or None
        float[:, :, :, ::1] out,  # OUT [batch, out_channels, out_h, out_w]
        float[::1] scratch,  # at least `scratch` floats for every thread; contents do not matter
        int threads,
    ):
        """Runs it: out = activation(conv(x) + bias + residual)."""
        cdef const subp_conv *call = &self._call
        cdef subp_conv_arrays arrays
        cdef const float[:, :, :, ::1] residual_view
        cdef Py_ssize_t i, n, fills = subp_conv_fills(call), items = subp_conv_items(call), size = self.scratch
        cdef Py_ssize_t passes = subp_conv_passes(call) * x.shape[0]
        cdef float *planes = NULL
        assert x.shape[0] > 0 and x.shape[0] == out.shape[0] and threads > 0 and scratch.shape[0] >= size * threads
        assert (x.shape[1], x.shape[2], x.shape[3]) == (call.in_channels, call.height, call.width)
        assert (out.shape[1], out.shape[2], out.shape[3]) == (call.out_channels, call.out_h, call.out_w)
        arrays.x, arrays.out, arrays.residual = &x[0, 0, 0, 0], &out[0, 0, 0, 0], NULL
        if residual is not None:
            residual_view = residual
            assert residual.shape == np.shape(out)
            arrays.residual = &residual_view[0, 0, 0, 0]
        if size:
            planes = &scratch[0]
        # Passes of a thread's own need no exchange between caches; where they do not divide well, threads share each.
        if passes % threads == 0 or passes >= 4 * threads:
            for i in prange(passes, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
                subp_conv_pass(call, &arrays, i, planes + threadid() * size)
            return
        for n in range(passes):
            if fills:
                for i in prange(fills, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
                    subp_conv_fill(call, &arrays, n, i, planes)
            for i in prange(items, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
                subp_conv_item(call, &arrays, n, i, planes)


# Elements of a work item of the element-wise operators.
cdef enum:
    CHUNK = 16384


def pool(
    str kernel_set,
    const float[:, :, ::1] x,  # IN [planes, height, width]
    kernel,  # (height, width), as stride, dilation and pad
    stride,
    dilation,
    pad,  # (top, left)
    counts,  # (rows, columns) float32, what an average divides by; None for the maximum
    float[:, :, ::1] out,  # OUT [planes, out_h, out_w]
    int threads,
):
    """Pools every plane; windows may hang over any edge."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    cdef subp_pool p
    cdef const float[::1] row_counts, column_counts
    cdef Py_ssize_t plane, planes = x.shape[0], size = x.shape[1] * x.shape[2], out_size = out.shape[1] * out.shape[2]
    assert planes == out.shape[0] and planes > 0 and size > 0 and out_size > 0 and threads > 0
    assert min(*kernel, *stride, *dilation) >= 1 and min(pad) >= 0
    p.height, p.width, p.out_h, p.out_w = x.shape[1], x.shape[2], out.shape[1], out.shape[2]
    p.kernel_h, p.kernel_w = kernel
    p.stride_h, p.stride_w = stride
    p.dilation_h, p.dilation_w = dilation
    p.pad_top, p.pad_left = pad
    p.average = counts is not None
    if counts is not None:
        row_counts, column_counts = counts
        assert row_counts.shape[0] == p.out_h and column_counts.shape[0] == p.out_w
        p.row_counts, p.column_counts = &row_counts[0], &column_counts[0]
    rows = np.empty((threads, p.width), np.float32)
    cdef float[:, ::1] row = rows
    cdef const float *source = &x[0, 0, 0]
    cdef float *target = &out[0, 0, 0]
    for plane in prange(planes, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        entry.pool(&p, source + plane * size, target + plane * out_size, &row[threadid(), 0])


def mean(
    str kernel_set,
    const float[:, ::1] x,  # IN [planes, pixels]
    float[::1] out,  # OUT [planes]
    int threads,
):
    """Averages every plane."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    cdef Py_ssize_t plane, planes = x.shape[0], size = x.shape[1]
    assert planes == out.shape[0] and planes > 0 and size > 0 and threads > 0
    for plane in prange(planes, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        out[plane] = entry.mean(&x[plane, 0], size)


def binary(
    str kernel_set,
    bint multiply,  # else add
    const float[:, ::1] a,  # IN [runs, n]
    const float[:, ::1] b,  # IN as a, or [runs, 1]
    activation,  # a name, or None
    float[:, ::1] out,  # OUT as a
    int threads,
):
    """Computes activation(a + b) or activation(a * b)."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    cdef int number = _activation_number(activation)
    cdef Py_ssize_t n = a.shape[1], chunks = (n + CHUNK - 1) // CHUNK, items = a.shape[0] * chunks, i, run, at
    cdef bint one = b.shape[1] == 1
    assert a.shape[0] == b.shape[0] == out.shape[0] and n == out.shape[1] and (one or b.shape[1] == n)
    assert items > 0 and threads > 0
    for i in prange(items, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        run = i // chunks
        at = i % chunks * CHUNK
        entry.binary(
            multiply, &a[run, at], &b[run, 0 if one else at], one, min(CHUNK, n - at), number, &out[run, at]
        )


def activate(
    str kernel_set,
    const float[::1] x,  # IN [n]
    activation,  # a name
    float[::1] out,  # OUT [n]
    int threads,
):
    """Computes activation(x)."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    cdef int number = _activation_number(activation)
    cdef Py_ssize_t n = x.shape[0], items = (n + CHUNK - 1) // CHUNK, i
    assert n == out.shape[0] and n > 0 and threads > 0
    for i in prange(items, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        entry.activate(&x[i * CHUNK], min(CHUNK, n - i * CHUNK), number, &out[i * CHUNK])
