# Depthwise convolutions, alone or behind a convolution.

cdef _describe(subp_window *w, in_size, out_size, kernel, stride, dilation, pad):
    """Fills in a window; every pair is (height, width)."""
    w.height, w.width = _wholes("the input's size", in_size, 2)
    w.out_h, w.out_w = _wholes("the output's size", out_size, 2)
    w.kernel_h, w.kernel_w = _wholes("kernel", kernel, 2)
    w.stride_h, w.stride_w = _wholes("stride", stride, 2)
    w.dilation_h, w.dilation_w = _wholes("dilation", dilation, 2)
    w.pad_top, w.pad_left = _wholes("pad", pad, 2, 0)


# Planes of a depthwise convolution that a thread takes at once.
cdef enum: PLANES_AT_ONCE = 16


cdef class CompiledDepthwise:
    """A depthwise convolution for one size of input; it reads its input in place.

    Args:
        kernel_set: as of `choose`.
        dtype: of the activations.
        values: [channels, kernel_h, kernel_w] in the type of the kernel's row.
        bias: float32 [channels] or None.
        activation: a name or None.
        in_size, out_size, stride, dilation, pad: (height, width); pad is that of the top and the left.
        requantize: for uint8 a `Requantization`, in place of bias and activation.
        out_dtype: as of `CompiledConvolution`.

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """

    cdef subp_window _window
    cdef const subp_row *_kernel
    cdef str _dtype, _out_dtype
    cdef _Array _values, _bias, _padding, _places
    cdef _Requantize _requantize
    cdef int _activation
    cdef readonly Py_ssize_t scratch  # none; as that of CompiledConvolution

    def __cinit__(
        self,
        kernel_set,
        dtype,
        values,
        bias,
        activation,
        in_size,
        out_size,
        stride,
        dilation,
        pad,
        requantize=None,
        str out_dtype="",
    ):
        cdef _Array weights
        shape = np.shape(values)
        if len(shape) != 3:
            raise ValueError(f"values is {_told(values)}; expected an array of shape [channels, kernel_h, kernel_w]")
        request = _Request("depthwise", dtype, kernel=shape[1:], stride=stride, dilation=dilation)
        self._kernel = _choose(kernel_set, request)
        self._dtype = _DTYPES[self._kernel.dtype]
        weights = _array("values", values, _DTYPES[self._kernel.weight_dtype], (None, None, None))
        self._activation = _activation_number(activation)
        _describe(&self._window, in_size, out_size, weights.shape[1:], stride, dilation, pad)
        self._bias = _optional("bias", bias, "float32", weights.shape[:1])
        other = bias is not None or activation is not None
        self._requantize = _requantize(requantize, self._dtype, weights.shape[0], other)
        self._out_dtype = _stored_type(self._kernel, self._requantize, out_dtype)
        zero = 0 if self._requantize is None else self._requantize.padding
        padding = np.full(self._window.width, zero, _FORMATS[self._dtype][0])
        self._padding = _array("padding", padding, self._dtype, (None,))
        self._places = _multiples(None, weights.shape[0], self._window.out_h * self._window.out_w)
        self._values = weights

    cdef _constants(self, const subp_requantize **constants, const int32_t **start, const float **factor):
        """Fills in what a call is handed of `requantize`."""
        constants[0], start[0], factor[0] = NULL, NULL, NULL
        if self._requantize is not None:
            constants[0] = &self._requantize.c
            start[0], factor[0] = <const int32_t *>self._requantize.start.data, _floats(self._requantize.factor)

    def bind(
        self,
        x,  # IN [batch, channels, height, width]
        residual,  # IN as out, or None
        out,  # OUT [batch, channels, out_h, out_w]
        scratch,  # not used
        threads,
    ):
        """Returns a call that runs it on these arrays: out = activation(conv(x) + bias + residual).

        Raises:
            TypeError, ValueError: an argument that does not fit.
        """
        cdef _Planes call = _Planes.__new__(_Planes)
        cdef const subp_window *w = &self._window
        cdef _Array source, target, addend
        if self._values is None:
            raise ValueError("this convolution was not made completely; make another")
        channels = self._values.shape[0]
        source = _array("x", x, self._dtype, (None, channels, w.height, w.width))
        target = _array("out", out, self._out_dtype, (source.shape[0], channels, w.out_h, w.out_w), True)
        if residual is not None and self._dtype != self._out_dtype:
            raise ValueError(
                f"a residual beside outputs of {self._out_dtype} from {self._dtype}, which no kernel adds; expected "
                "None"
            )
        addend = _optional("residual", residual, self._out_dtype, target.shape)
        call.threads, call.channels = _threads(threads), channels
        call.step = min(PLANES_AT_ONCE, (channels + call.threads - 1) // call.threads)
        call.steps = (channels + call.step - 1) // call.step
        call.items = source.shape[0] * call.steps
        call.run, call.element = self._kernel.run.depthwise, _FORMATS[self._dtype][1]
        call.weight_element, call.out_element = self._values.itemsize, _FORMATS[self._out_dtype][1]
        call.whole.window, call.whole.activation, call.whole.padding = w, self._activation, self._padding.data
        call.whole.in_stride, call.whole.out_offsets = w.height * w.width, <const Py_ssize_t *>self._places.data
        call.whole.input, call.whole.out, call.whole.residual = source.data, target.data, _data(addend)
        call.whole.values, call.whole.bias = self._values.data, _floats(self._bias)
        call.whole.to_float = self._dtype != self._out_dtype
        self._constants(&call.whole.requantize, &call.whole.start, &call.whole.factor)
        call.held = (self, source, addend, target)
        return call

    def run(self, x, residual, out, scratch, threads):
        """Runs it; arguments as for `bind`."""
        self.bind(x, residual, out, scratch, threads)()


cdef class _Planes(_Bound):
    """Planes of a depthwise convolution, `step` of one image at a time."""

    cdef subp_depthwise_fn run
    cdef subp_depthwise whole  # as for the first image
    cdef Py_ssize_t channels, step, steps
    cdef Py_ssize_t element, weight_element, out_element

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef subp_depthwise call = self.whole
        cdef Py_ssize_t channel = i % self.steps * self.step, planes = i // self.steps * self.channels
        cdef Py_ssize_t image = planes * call.window.out_h * call.window.out_w  # of the output
        call.count = min(self.step, self.channels - channel)
        call.input = <const char *>call.input + (planes + channel) * call.in_stride * self.element
        call.out = <char *>call.out + image * self.out_element
        call.out_offsets += channel
        call.values = (
            <const char *>call.values + channel * call.window.kernel_h * call.window.kernel_w * self.weight_element
        )
        if call.bias != NULL:
            call.bias += channel
        if call.requantize != NULL:
            call.start += channel
            call.factor += channel
        if call.residual != NULL:
            call.residual = <const char *>call.residual + image * self.out_element
        self.run(&call)


# What is between two convolutions in a part's memory at most, where one block row is not more, and the parts that there
# are at least for threads to share, where block rows are that many.
cdef enum:
    PART_BYTES = 16384
    LEAST_PARTS = 16


cdef class CompiledFusedDepthwise(_InPasses):
    """A convolution and the depthwise one that reads its output, which is never in memory as a whole.

    Args:
        first: its band is the most rows that the windows of `band` output rows see.
        second: over the output of the first, its weights and constants in the order of the first's block rows.
        band: output rows of a pass.

    Raises:
        TypeError, ValueError: the two do not fit, or the band is too large for the first's.
    """

    cdef subp_fused_depthwise _call
    cdef Py_ssize_t _first  # bytes of scratch for the first convolution

    def __cinit__(self, CompiledConvolution first not None, CompiledDepthwise second not None, band):
        cdef subp_fused_depthwise *call = &self._call
        cdef const subp_window *w = &second._window
        cdef object seen, pitch, between_rows = first._call.band  # of any size until they are checked
        cdef tuple shape
        cdef _Array places, between
        if first._arrays is None or second._values is None:
            raise ValueError("one of the convolutions was not made completely; make another")
        band = _whole("band", band)
        shape = (second._values.shape[0], w.height, w.width)
        if shape != first._out_shape:
            raise ValueError(f"the second convolution reads {list(shape)}; the first gives {list(first._out_shape)}")
        seen = min(shape[1], (band - 1) * w.stride_h + (second._values.shape[1] - 1) * w.dilation_h + 1)
        if seen > between_rows:
            raise ValueError(f"{band} output rows see {seen} rows; the first convolution's band has {between_rows}")
        call.first, call.window, call.kernel, call.band = first._call, second._window, second._kernel, band
        call.values, call.padding, call.bias = second._values.data, second._padding.data, _floats(second._bias)
        call.activation = second._activation
        second._constants(&call.requantize, &call.start, &call.factor)
        # An odd number of cache lines, or all channels would compete for the same few sets of the L1 cache.
        line = 4 * SUBP_LINE // first._element
        pitch = ((between_rows * shape[2] + line - 1) // line | 1) * line
        if pitch * first._call.block >= 2**40:
            raise ValueError(f"a block row of {first._call.block} channels of {pitch} elements is too large")
        if len({first._dtype, first._out_dtype, second._dtype, second._out_dtype}) > 1:
            raise ValueError(
                f"the first convolution is of {first._dtype} to {first._out_dtype}, the second of {second._dtype} to "
                f"{second._out_dtype}; expected one type"
            )
        self._dtype, self._out_dtype, self._element = first._dtype, first._out_dtype, first._element
        call.pitch = pitch
        # More block rows of small planes, whose first run of each has nothing to be prepared along with.
        most = min(PART_BYTES // (pitch * first._call.block * first._element), first._call.rows // LEAST_PARTS)
        call.step = max(1, most)
        places = _multiples(first._order, shape[0], w.out_h * w.out_w)
        between = _multiples(None, call.step * first._call.block, pitch)
        call.out_offsets, call.between_offsets = <const Py_ssize_t *>places.data, <const Py_ssize_t *>between.data
        self._arrays = (first, second, places, between)
        self._in_shape, self._out_shape = first._in_shape, (shape[0], w.out_h, w.out_w)
        self._passes, self._fills = subp_fused_depthwise_passes(call), first._fills
        self._first = 4 * first.scratch
        self.scratch = first.scratch + (call.step * call.first.block * call.pitch * self._element + 3) // 4

    cdef subp_conv_parts _divide(self, int threads) noexcept nogil:
        cdef subp_conv_parts parts
        parts.row_step, parts.pixel_step, parts.parts = 1, 0, subp_fused_depthwise_parts(&self._call)
        return parts

    cdef void _fill(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                    void *scratch) noexcept nogil:
        subp_fused_depthwise_fill(&self._call, arrays, pass_, channel, scratch)

    cdef void _part(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, const subp_conv_parts *parts,
                    Py_ssize_t part, const void *scratch, void *own) noexcept nogil:
        subp_fused_depthwise_part(
            &self._call, arrays, pass_, part, scratch, self._words(own), <char *>own + self._first
        )

    cdef void _whole(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, void *own) noexcept nogil:
        subp_fused_depthwise_pass(&self._call, arrays, pass_, own, self._words(own), <char *>own + self._first)

    cdef void *_words(self, const void *own) noexcept nogil:
        """A thread's own words for the first convolution, as of `CompiledConvolution`."""
        return <char *>own + subp_conv_planes(&self._call.first) + subp_conv_shared_words(&self._call.first)
