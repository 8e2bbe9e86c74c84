# Convolutions compiled for one size of input, as _kernels.pyx includes them.

cdef class _Kernels:
    """The kernels that a block row takes, one after the other."""

    cdef const subp_kernel **of_row
    cdef Py_ssize_t count

    def __cinit__(self, int isa, Py_ssize_t block):
        cdef Py_ssize_t n = 0
        self.of_row = <const subp_kernel **>PyMem_Malloc(block * sizeof(void *))
        if self.of_row == NULL:
            raise MemoryError()
        while n < block:
            self.of_row[self.count] = subp_find_kernel(isa, block - n)
            n += self.of_row[self.count].channels
            self.count += 1

    def __dealloc__(self):
        PyMem_Free(self.of_row)


cdef class _InPasses:
    """A convolution as passes, each of channels to fill planes with, then parts to compute from the planes."""

    cdef object _arrays  # keeps alive what pointers lead to
    cdef tuple _in_shape, _out_shape  # (channels, height, width)
    cdef Py_ssize_t _passes, _fills  # of an image, of a pass
    cdef readonly Py_ssize_t scratch  # floats for every thread

    cdef subp_conv_parts _divide(self, int threads) noexcept nogil:
        """Cuts a pass for so many threads."""

    cdef void _fill(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                    float *scratch) noexcept nogil:
        """Fills a channel's planes; `scratch` is shared by all threads."""

    cdef void _part(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, const subp_conv_parts *parts,
                    Py_ssize_t part, const float *scratch, float *own) noexcept nogil:
        """Computes a part from the planes in `scratch`; `own` is the thread's."""

    cdef void _whole(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, float *own) noexcept nogil:
        """A pass by one thread alone."""

    def bind(
        self,
        const float[:, :, :, ::1] x,  # IN [batch, in_channels, height, width]
        residual,  # IN as out, or None
        float[:, :, :, ::1] out,  # OUT [batch, out_channels, out_h, out_w]
        float[::1] scratch,  # at least `scratch` floats for every thread; contents do not matter
        int threads,
    ):
        """Returns a call that runs it on these arrays: out = activation(conv(x) + bias + residual)."""
        cdef _Call call = _Call.__new__(_Call)
        cdef const float[:, :, :, ::1] residual_view
        assert x.shape[0] > 0 and x.shape[0] == out.shape[0] and threads > 0
        assert scratch.shape[0] >= self.scratch * threads
        assert (x.shape[1], x.shape[2], x.shape[3]) == self._in_shape
        assert (out.shape[1], out.shape[2], out.shape[3]) == self._out_shape
        call.arrays.x, call.arrays.out, call.arrays.residual = &x[0, 0, 0, 0], &out[0, 0, 0, 0], NULL
        if residual is not None:
            residual_view = residual
            assert residual.shape == np.shape(out)
            call.arrays.residual = &residual_view[0, 0, 0, 0]
        call.scratch = &scratch[0] if self.scratch else NULL
        call.what, call.passes, call.threads = self, self._passes * x.shape[0], threads
        call.held = (x, residual, out, scratch)
        return call

    def run(self, x, residual, out, scratch, threads):
        """Runs it; arguments as for `bind`."""
        self.bind(x, residual, out, scratch, threads)()


cdef class _Call:
    """A convolution and the arrays it runs on, all of them checked."""

    cdef _InPasses what
    cdef object held  # keeps alive what pointers lead to
    cdef subp_conv_arrays arrays
    cdef float *scratch
    cdef Py_ssize_t passes
    cdef int threads

    def __call__(self):
        cdef _InPasses what = self.what
        cdef Py_ssize_t i, n, fills = what._fills, size = what.scratch, passes = self.passes
        cdef const subp_conv_arrays *arrays = &self.arrays
        cdef int threads = self.threads
        cdef float *memory = self.scratch
        cdef subp_conv_parts parts
        # Passes of a thread's own need no exchange between caches; where they do not divide well, threads share each.
        if passes % threads == 0 or passes >= 4 * threads:
            for i in prange(passes, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
                what._whole(arrays, i, memory + threadid() * size)
            return
        parts = what._divide(threads)
        for n in range(passes):
            if fills:
                for i in prange(fills, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
                    what._fill(arrays, n, i, memory)
            for i in prange(parts.parts, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
                what._part(arrays, n, &parts, i, memory, memory + threadid() * size)


cdef class Convolution(_InPasses):
    """A convolution with packed weights for one size of input. Everything that memory safety rests on is checked here.

    Args:
        kernel_set: of `kernel_sets`.
        values: [rows, kept * taps * block], a row as `tiles` of [kept, taps, channels of the tile].
        indices: [rows, kept], channels within the group.
        block, groups: as the weight's.
        bias: [out_channels] or None.
        activation: a name or None.
        in_shape, out_shape: (channels, height, width).
        copies: [copies, 2] row and column of each copy of a channel; none to read the input in place.
        pad, stride: (height, width).
        band, plane_rows, channel_stride, tile_pixels, pixels_outside: see kernels/conv.h.
        tap_offsets: [taps].

    Raises:
        ValueError: an unknown kernel set or activation.
    """

    cdef subp_conv _call

    def __init__(
        self,
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
        Py_ssize_t tile_pixels,
        bint pixels_outside,
    ):
        cdef subp_conv *call = &self._call
        cdef const float[::1] bias_view
        cdef const Py_ssize_t[::1] copy_rows, copy_cols
        cdef const int32_t[:, ::1] offsets
        cdef _Kernels kernels
        call.activation = _activation_number(activation)
        call.in_channels, call.height, call.width = in_shape
        call.out_channels, call.out_h, call.out_w = out_shape
        call.rows, call.kept, call.taps = indices.shape[0], indices.shape[1], tap_offsets.shape[0]
        call.block, call.groups, call.copies = block, groups, len(copies)
        call.pad_top, call.pad_left = pad
        call.stride_h, call.stride_w = stride
        call.band, call.plane_rows, call.channel_stride = band, plane_rows, channel_stride
        call.tile_pixels, call.pixels_outside = tile_pixels, pixels_outside
        assert min(*in_shape, *out_shape, *stride, groups, block, band, tile_pixels) > 0 and min(pad) >= 0
        assert values.size and indices.size and tap_offsets.size
        assert call.in_channels % groups == 0 and call.out_channels % groups == 0 and call.rows % groups == 0
        assert call.rows // groups == (call.out_channels // groups + block - 1) // block
        assert values.shape[0] == call.rows and values.shape[1] == call.kept * call.taps * block
        assert np.min(indices) >= 0 and np.max(indices) < call.in_channels // groups
        assert np.min(tap_offsets) >= 0
        if call.copies:
            assert np.min(copies) >= 0 and plane_rows >= band
            assert channel_stride >= call.copies * plane_rows * call.out_w
            assert np.max(tap_offsets) + band * call.out_w <= call.copies * plane_rows * call.out_w
            rows = np.ascontiguousarray(copies[:, 0], np.intp)
            columns = np.ascontiguousarray(copies[:, 1], np.intp)
            copy_rows, copy_cols = rows, columns
            call.copy_rows, call.copy_cols = &copy_rows[0], &copy_cols[0]
            self.scratch = channel_stride * call.in_channels
        else:
            rows = columns = None
            assert tuple(in_shape[1:]) == tuple(out_shape[1:]) and channel_stride == call.height * call.width
            assert call.taps == 1 and tap_offsets[0] == 0
        kernels = _Kernels(_set_number(kernel_set), block)
        call.kernels, call.halve = kernels.of_row, subp_kernel_set_at(_set_number(kernel_set)).halve
        # The product would compete with the kernels' own for a port of the CPU.
        assert call.in_channels * channel_stride < 2**31
        offsets = np.asarray(indices) * np.int32(channel_stride)
        call.bias = NULL
        if bias is not None:
            bias_view = bias
            assert bias_view.shape[0] == call.out_channels
            call.bias = &bias_view[0]
        call.values, call.channel_offsets, call.tap_offsets = &values[0, 0], &offsets[0, 0], &tap_offsets[0]
        self._arrays = (values, offsets, tap_offsets, bias, rows, columns, kernels)
        self._in_shape, self._out_shape = tuple(in_shape), tuple(out_shape)
        self._passes, self._fills = subp_conv_passes(call), subp_conv_fills(call)

    cdef subp_conv_parts _divide(self, int threads) noexcept nogil:
        return subp_conv_divide(&self._call, threads)

    cdef void _fill(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                    float *scratch) noexcept nogil:
        subp_conv_fill(&self._call, arrays, pass_, channel, scratch)

    cdef void _part(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, const subp_conv_parts *parts,
                    Py_ssize_t part, const float *scratch, float *own) noexcept nogil:
        subp_conv_part(&self._call, arrays, pass_, parts, part, scratch)

    cdef void _whole(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, float *own) noexcept nogil:
        subp_conv_pass(&self._call, arrays, pass_, own)


cdef class Winograd(_InPasses):
    """A 3x3 convolution with stride 1 through Winograd's transforms, for one size of input.

    Args:
        kernel_set, indices, block, groups, bias, activation, in_shape, out_shape, pad: as `Convolution`.
        size: outputs of a tile along a side, one of `winograd_sizes`.
        values: [rows, positions * kept * block], a row as `tiles` of [positions, kept, channels of the tile].
        run, call_tiles, pitch: see kernels/winograd.h.

    Raises:
        ValueError: an unknown kernel set or activation.
    """

    cdef subp_winograd _call

    def __init__(
        self,
        str kernel_set,
        int size,
        const float[:, ::1] values,
        const int32_t[:, ::1] indices,
        Py_ssize_t block,
        Py_ssize_t groups,
        bias,
        activation,
        in_shape,
        out_shape,
        pad,
        *,
        Py_ssize_t run,
        Py_ssize_t call_tiles,
        Py_ssize_t pitch,
    ):
        cdef subp_winograd *call = &self._call
        cdef int isa = _set_number(kernel_set)
        cdef _Kernels kernels = _Kernels(isa, block)
        cdef const float[::1] bias_view
        cdef const int32_t[:, ::1] offsets
        call.transforms = subp_find_winograd(isa, size)
        assert call.transforms != NULL
        call.kernels, call.tiles_of_row = kernels.of_row, kernels.count
        call.activation = _activation_number(activation)
        call.in_channels, call.tiles.height, call.tiles.width = in_shape
        call.out_channels, call.tiles.out_h, call.tiles.out_w = out_shape
        call.tiles.pad_top, call.tiles.pad_left = pad
        call.tiles.across = (call.tiles.out_w + size - 1) // size
        call.rows, call.kept, call.block, call.groups = indices.shape[0], indices.shape[1], block, groups
        call.run, call.call_tiles, call.pitch = run, call_tiles, pitch
        assert min(*in_shape, *out_shape, groups, block, run, call_tiles) > 0 and min(pad) >= 0
        assert pitch >= run + SUBP_TILE_SLACK and values.size and indices.size
        assert call.in_channels % groups == 0 and call.out_channels % groups == 0 and call.rows % groups == 0
        assert call.rows // groups == (call.out_channels // groups + block - 1) // block
        assert values.shape[0] == call.rows and values.shape[1] == (size + 2) ** 2 * call.kept * block
        assert np.min(indices) >= 0 and np.max(indices) < call.in_channels // groups
        assert call.in_channels * pitch < 2**31
        offsets = np.asarray(indices) * np.int32(pitch)
        call.bias = NULL
        if bias is not None:
            bias_view = bias
            assert bias_view.shape[0] == call.out_channels
            call.bias = &bias_view[0]
        call.values, call.channel_offsets = &values[0, 0], &offsets[0, 0]
        self._arrays = (values, offsets, bias, kernels)
        self._in_shape, self._out_shape = tuple(in_shape), tuple(out_shape)
        self._passes, self._fills = subp_winograd_passes(call), subp_winograd_fills(call)
        self.scratch = subp_winograd_planes(call) + subp_winograd_sums(call)

    cdef subp_conv_parts _divide(self, int threads) noexcept nogil:
        cdef subp_conv_parts parts
        parts.row_step, parts.pixel_step, parts.parts = 1, self._call.run, subp_winograd_parts(&self._call)
        return parts

    cdef void _fill(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                    float *scratch) noexcept nogil:
        subp_winograd_fill(&self._call, arrays, pass_, channel, scratch)

    cdef void _part(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, const subp_conv_parts *parts,
                    Py_ssize_t part, const float *scratch, float *own) noexcept nogil:
        subp_winograd_part(&self._call, arrays, pass_, part, scratch, own + subp_winograd_planes(&self._call))

    cdef void _whole(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, float *own) noexcept nogil:
        subp_winograd_pass(&self._call, arrays, pass_, own, own + subp_winograd_planes(&self._call))


cdef _describe(subp_window *w, in_size, out_size, kernel, stride, dilation, pad):
    """Fills in a window; every pair is (height, width)."""
    assert min(*in_size, *out_size, *kernel, *stride, *dilation) >= 1 and min(pad) >= 0
    w.height, w.width = in_size
    w.out_h, w.out_w = out_size
    w.kernel_h, w.kernel_w = kernel
    w.stride_h, w.stride_w = stride
    w.dilation_h, w.dilation_w = dilation
    w.pad_top, w.pad_left = pad


# Planes of a depthwise convolution that a thread takes at once.
cdef enum: PLANES_AT_ONCE = 16


cdef class Depthwise:
    """A depthwise convolution for one size of input; it reads its input in place.

    Args:
        kernel_set: of `kernel_sets`.
        values: [channels, kernel_h, kernel_w].
        bias: [channels] or None.
        activation: a name or None.
        in_size, out_size, stride, dilation, pad: (height, width); pad is that of the top and the left.

    Raises:
        ValueError: an unknown kernel set or activation.
    """

    cdef subp_window _window
    cdef const subp_depthwise_kernel *_kernel
    cdef const float[:, :, ::1] _values
    cdef const float[::1] _bias, _padding
    cdef int _activation
    cdef readonly Py_ssize_t scratch  # none; as that of Convolution

    def __init__(self, str kernel_set, values, bias, activation, in_size, out_size, stride, dilation, pad):
        self._values, self._bias, self._activation = values, bias, _activation_number(activation)
        _describe(&self._window, in_size, out_size, values.shape[1:], stride, dilation, pad)
        assert bias is None or self._bias.shape[0] == self._values.shape[0]
        self._padding = np.zeros(self._window.width, np.float32)
        self._kernel = subp_find_depthwise(_set_number(kernel_set), &self._window)

    def run(
        self,
        const float[:, :, :, ::1] x,  # IN [batch, channels, height, width]
        residual,  # IN as out, or None
        float[:, :, :, ::1] out,  # OUT [batch, channels, out_h, out_w]
        scratch,  # not used
        int threads,
    ):
        """Runs it: out = activation(conv(x) + bias + residual)."""
        cdef const subp_window *w = &self._window
        cdef Py_ssize_t channels = self._values.shape[0], batch = x.shape[0], i
        cdef Py_ssize_t step = min(PLANES_AT_ONCE, (channels + threads - 1) // threads)
        cdef Py_ssize_t steps = (channels + step - 1) // step
        cdef const float[:, :, :, ::1] residual_view
        cdef const float *addend = NULL
        cdef const float *bias = NULL
        assert batch > 0 and batch == out.shape[0] and threads > 0
        assert (x.shape[1], x.shape[2], x.shape[3]) == (channels, w.height, w.width)
        assert (out.shape[1], out.shape[2], out.shape[3]) == (channels, w.out_h, w.out_w)
        if residual is not None:
            residual_view = residual
            assert residual.shape == np.shape(out)
            addend = &residual_view[0, 0, 0, 0]
        if self._bias is not None:
            bias = &self._bias[0]
        for i in prange(batch * steps, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
            self._planes(i // steps, i % steps * step, step, &x[0, 0, 0, 0], bias, addend, &out[0, 0, 0, 0])

    def bind(self, *arguments):
        """Returns a call that runs it on these arrays; arguments as for `run`."""
        return partial(self.run, *arguments)

    cdef void _planes(self, Py_ssize_t image, Py_ssize_t channel, Py_ssize_t count, const float *x, const float *bias,
                      const float *residual, float *out) noexcept nogil:
        cdef const subp_window *w = &self._window
        cdef Py_ssize_t channels = self._values.shape[0], first = image * channels + channel, out_at
        cdef subp_depthwise call
        call.window, call.padding, call.activation = w, &self._padding[0], self._activation
        call.count = min(count, channels - channel)
        call.in_stride, call.out_stride = w.height * w.width, w.out_h * w.out_w
        out_at = first * call.out_stride
        call.input = x + first * call.in_stride
        call.values = &self._values[channel, 0, 0]
        call.bias = bias + channel if bias != NULL else NULL
        call.residual = residual + out_at if residual != NULL else NULL
        call.out = out + out_at
        self._kernel.run(&call)


cdef class Chain(_InPasses):
    """A convolution and the depthwise one that reads its output, which is never in memory as a whole.

    Args:
        first: its band is the most rows that the windows of `band` output rows see.
        second: over the output of the first.
        band: output rows of a pass.
    """

    cdef subp_chain _call
    cdef Py_ssize_t _planes

    def __init__(self, Convolution first, Depthwise second, Py_ssize_t band):
        cdef subp_chain *call = &self._call
        cdef const subp_window *w = &second._window
        cdef Py_ssize_t channels = first._call.out_channels
        call.first, call.window, call.kernel, call.band = first._call, second._window, second._kernel, band
        assert channels == second._values.shape[0]
        assert (channels, w.height, w.width) == first._out_shape
        assert 0 < band and 0 < first._call.band
        assert min(w.height, (band - 1) * w.stride_h + (w.kernel_h - 1) * w.dilation_h + 1) <= first._call.band
        call.values, call.padding, call.bias = &second._values[0, 0, 0], &second._padding[0], NULL
        if second._bias is not None:
            call.bias = &second._bias[0]
        call.activation = second._activation
        # An odd number of cache lines, or all channels would compete for the same few sets of the first cache.
        call.pitch = ((first._call.band * w.width + SUBP_LINE - 1) // SUBP_LINE | 1) * SUBP_LINE
        self._arrays = (first, second)
        self._in_shape, self._out_shape = first._in_shape, (channels, w.out_h, w.out_w)
        self._passes, self._fills = subp_chain_passes(call), first._fills
        self._planes = first.scratch
        self.scratch = self._planes + call.first.block * call.pitch

    cdef subp_conv_parts _divide(self, int threads) noexcept nogil:
        cdef subp_conv_parts parts
        parts.row_step, parts.pixel_step, parts.parts = 1, 0, subp_chain_parts(&self._call)
        return parts

    cdef void _fill(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                    float *scratch) noexcept nogil:
        subp_chain_fill(&self._call, arrays, pass_, channel, scratch)

    cdef void _part(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, const subp_conv_parts *parts,
                    Py_ssize_t part, const float *scratch, float *own) noexcept nogil:
        subp_chain_part(&self._call, arrays, pass_, part, scratch, own + self._planes)

    cdef void _whole(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, float *own) noexcept nogil:
        subp_chain_pass(&self._call, arrays, pass_, own, own + self._planes)


def run_rows(
    convolutions,  # Convolutions that differ in their weights alone
    const float[:, :, :, ::1] x,  # IN [1, in_channels, height, width]
    outs,  # OUT for each, as for `Convolution.run`
    float[::1] scratch,  # as for `Convolution.run` of one thread
    int threads,
    bint dynamic,
):
    """Runs several convolutions of one input, each by one thread, scheduled statically or dynamically.

    This is what a convolution would be whose block rows differ in what they keep: the benchmark compares with it.
    """
    cdef Py_ssize_t count = len(convolutions), i, n, fills
    cdef const subp_conv *first
    cdef subp_conv_parts whole
    cdef float[:, :, :, ::1] out
    cdef const subp_conv **calls = <const subp_conv **>PyMem_Malloc(count * sizeof(void *))
    cdef subp_conv_arrays *arrays = <subp_conv_arrays *>PyMem_Malloc(count * sizeof(subp_conv_arrays))
    try:
        if calls == NULL or arrays == NULL:
            raise MemoryError()
        for i in range(count):
            calls[i], out = &(<Convolution?>convolutions[i])._call, outs[i]
            assert (out.shape[1], out.shape[2], out.shape[3]) == (calls[i].out_channels, calls[i].out_h, calls[i].out_w)
            assert (x.shape[1], x.shape[2], x.shape[3]) == (calls[i].in_channels, calls[i].height, calls[i].width)
            assert calls[i].channel_stride == calls[0].channel_stride and calls[i].band == calls[0].band
            assert calls[i].rows == 1 and x.shape[0] == out.shape[0] == 1 and threads > 0
            arrays[i].x, arrays[i].out, arrays[i].residual = &x[0, 0, 0, 0], &out[0, 0, 0, 0], NULL
        first, fills, whole = calls[0], subp_conv_fills(calls[0]), subp_conv_divide(calls[0], 1)
        assert scratch.shape[0] >= (<Convolution>convolutions[0]).scratch
        for n in range(subp_conv_passes(first)):
            for i in prange(fills, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
                subp_conv_fill(first, arrays, n, i, &scratch[0])
            if dynamic:
                for i in prange(count, nogil=True, schedule="dynamic", num_threads=threads, use_threads_if=threads > 1):
                    subp_conv_part(calls[i], &arrays[i], n, &whole, 0, &scratch[0])
            else:
                for i in prange(count, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
                    subp_conv_part(calls[i], &arrays[i], n, &whole, 0, &scratch[0])
    finally:
        PyMem_Free(calls)
        PyMem_Free(arrays)
