# Pooling, element-wise operators and norms of real numbers as bound calls: a part of _kernels.pyx.
#
# Each bind_* function checks its arguments once and returns an object whose call takes none.

# Elements of a work item of the element-wise operators.
cdef enum:
    CHUNK = 16384


cdef class _Pool(_Bound):
    cdef subp_pool_fn run
    cdef subp_pool pool
    cdef const char *x
    cdef char *out
    cdef char *row
    cdef Py_ssize_t size, out_size, row_size  # bytes

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        self.run(&self.pool, self.x + i * self.size, self.out + i * self.out_size, self.row + thread * self.row_size)


def bind_pool(
    kernel_set,
    x,  # IN [planes, height, width]
    kernel,  # (height, width), as stride, dilation and pad
    stride,
    dilation,
    pad,  # (top, left)
    counts,  # (rows [out_h], columns [out_w]) float32, what an average divides by; None for the maximum
    out,  # OUT [planes, out_h, out_w]
    threads,
    dtype="float32",  # of x and out
):
    """Binds the pooling of every plane; windows may hang over any edge."""
    cdef _Pool call = _Pool.__new__(_Pool)
    cdef _Array source = _array("x", x, dtype, (None, None, None))
    cdef _Array target = _array("out", out, dtype, (source.shape[0], None, None), True)
    cdef _Array row_counts = None, column_counts = None, rows
    cdef subp_window *window = &call.pool.window
    call.threads, call.items = _threads(threads), source.shape[0]
    call.run = _choose(kernel_set, _Request("pool", dtype)).run.pool
    _describe(window, source.shape[1:], target.shape[1:], kernel, stride, dilation, pad)
    call.pool.average = counts is not None
    if counts is not None:
        if not isinstance(counts, (tuple, list)) or len(counts) != 2:
            raise ValueError(f"counts is {_told(counts)}; expected None, or (rows, columns)")
        row_counts = _array("counts of rows", counts[0], "float32", (window.out_h,))
        column_counts = _array("counts of columns", counts[1], "float32", (window.out_w,))
        call.pool.row_counts, call.pool.column_counts = <float *>row_counts.data, <float *>column_counts.data
    rows = _array("row", np.empty((call.threads, subp_pool_row(window)), np.float32), "float32", (None, None), True)
    call.x, call.out, call.row = <char *>source.data, <char *>target.data, <char *>rows.data
    call.size, call.row_size = window.height * window.width * source.itemsize, rows.shape[1] * rows.itemsize
    call.out_size = window.out_h * window.out_w * source.itemsize
    call.held = (source, target, row_counts, column_counts, rows)
    return call


cdef class _Mean(_Bound):
    cdef subp_mean_fn run
    cdef const char *x
    cdef char *out
    cdef Py_ssize_t size, element

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        self.run(self.x + i * self.size * self.element, self.size, self.out + i * self.element)


def bind_mean(
    kernel_set,
    x,  # IN [planes, pixels]
    out,  # OUT [planes]
    threads,
    dtype="float32",  # of x and out
):
    """Binds the average of every plane."""
    cdef _Mean call = _Mean.__new__(_Mean)
    cdef _Array source = _array("x", x, dtype, (None, None))
    cdef _Array target = _array("out", out, dtype, (source.shape[0],), True)
    call.threads, call.run = _threads(threads), _choose(kernel_set, _Request("mean", dtype)).run.mean
    call.items, call.size = source.shape
    call.element = source.itemsize
    call.x, call.out, call.held = <char *>source.data, <char *>target.data, (source, target)
    return call


cdef class _Binary(_Bound):
    cdef subp_binary_fn run
    cdef const char *a
    cdef const char *b
    cdef char *out
    cdef Py_ssize_t size, chunks, element, b_element
    cdef int multiply, one, activation

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef Py_ssize_t run = i // self.chunks, at = i % self.chunks * CHUNK, begin = run * self.size + at
        self.run(
            self.multiply, self.a + begin * self.element, self.b + (run if self.one else begin) * self.b_element,
            self.one, min(CHUNK, self.size - at), self.activation, self.out + begin * self.element
        )


def bind_binary(
    kernel_set,
    bint multiply,  # else add
    a,  # IN [runs, n]
    b,  # IN as a, or [runs, 1] of the same type or of float32
    activation,  # a name, or None
    out,  # OUT as a
    threads,
    dtype="float32",  # of a and out
):
    """Binds activation(a + b) or activation(a * b)."""
    cdef _Binary call = _Binary.__new__(_Binary)
    cdef _Array first = _array("a", a, dtype, (None, None)), second, target
    cdef bint floats = getattr(b, "dtype", None) == np.float32 and dtype != "float32"
    second = _array("b", b, "float32" if floats else dtype, (first.shape[0], 1 if floats else None))
    if second.shape[1] not in (1, first.shape[1]):
        wanted = f"that of a, {list(first.shape)}, or one number a run"
        raise ValueError(f"b has shape {list(second.shape)}; expected {wanted}")
    target = _array("out", out, dtype, first.shape, True)
    call.threads, call.run = _threads(threads), _choose(kernel_set, _Request("binary", dtype)).run.binary
    call.multiply, call.activation = multiply, _activation_number(activation)
    call.one = 0 if second.shape[1] != 1 else SUBP_ONE_FLOAT if floats else SUBP_ONE
    call.size = first.shape[1]
    call.chunks = (call.size + CHUNK - 1) // CHUNK
    call.items = first.shape[0] * call.chunks
    call.a, call.b, call.out = <char *>first.data, <char *>second.data, <char *>target.data
    call.element, call.b_element = first.itemsize, second.itemsize
    call.held = (first, second, target)
    return call


cdef class _Activate(_Bound):
    cdef subp_activate_fn run
    cdef const char *x
    cdef char *out
    cdef Py_ssize_t size, element
    cdef int activation

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef Py_ssize_t at = i * CHUNK
        self.run(
            self.x + at * self.element, min(CHUNK, self.size - at), self.activation, self.out + at * self.element
        )


def bind_activate(
    kernel_set,
    x,  # IN [n]
    activation,  # a name
    out,  # OUT [n]
    threads,
    dtype="float32",  # of x and out
):
    """Binds activation(x)."""
    cdef _Activate call = _Activate.__new__(_Activate)
    cdef _Array source = _array("x", x, dtype, (None,))
    cdef _Array target = _array("out", out, dtype, source.shape, True)
    call.threads, call.run = _threads(threads), _choose(kernel_set, _Request("activate", dtype)).run.activate
    call.activation, call.size = _activation_number(activation), source.shape[0]
    call.items = (call.size + CHUNK - 1) // CHUNK
    call.element = source.itemsize
    call.x, call.out, call.held = <char *>source.data, <char *>target.data, (source, target)
    return call


cdef class _Cast(_Bound):
    cdef subp_cast_fn run
    cdef const char *x
    cdef char *out
    cdef Py_ssize_t size, element, out_element

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef Py_ssize_t at = i * CHUNK
        self.run(self.x + at * self.element, min(CHUNK, self.size - at), self.out + at * self.out_element)


def bind_cast(
    kernel_set,
    x,  # IN [n]
    out,  # OUT [n]
    threads,
    dtype="float32",  # of x
    out_dtype="bfloat16",
):
    """Binds the same numbers in another type, each to the nearest, ties to even."""
    cdef _Cast call = _Cast.__new__(_Cast)
    cdef _Array source = _array("x", x, dtype, (None,))
    cdef _Array target = _array("out", out, out_dtype, source.shape, True)
    cdef const subp_row *row = _choose(kernel_set, _Request("cast", dtype))
    if _DTYPES[row.out_dtype] != out_dtype:
        raise ValueError(f"no kernel casts {dtype} to {out_dtype}")
    call.threads, call.size, call.run = _threads(threads), source.shape[0], row.run.cast
    call.items = (call.size + CHUNK - 1) // CHUNK
    call.element, call.out_element = source.itemsize, target.itemsize
    call.x, call.out, call.held = <char *>source.data, <char *>target.data, (source, target)
    return call


cdef class _Norm(_Bound):
    """What both normalisations are bound with."""

    cdef const char *x
    cdef const float *weight
    cdef const float *bias
    cdef char *out
    cdef float eps
    cdef Py_ssize_t channels, pixels, element


cdef class _NormPixels(_Norm):
    cdef subp_norm_pixels_fn run
    cdef Py_ssize_t tiles  # of an image

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef Py_ssize_t at = i % self.tiles * SUBP_NORM_PIXELS
        cdef Py_ssize_t begin = i // self.tiles * self.channels * self.pixels + at
        self.run(
            self.x + begin * self.element, self.channels, self.pixels, min(SUBP_NORM_PIXELS, self.pixels - at),
            self.weight, self.bias, self.eps, self.out + begin * self.element
        )


def bind_norm_pixels(
    kernel_set,
    x,  # IN [images, channels, pixels]
    weight,  # IN float32 [channels]
    bias,  # IN float32 [channels]
    float eps,
    out,  # OUT as x, and possibly the same memory
    threads,
    dtype="float32",  # of x and out
):
    """Binds the normalisation of every pixel over its channels."""
    cdef _NormPixels call = _NormPixels.__new__(_NormPixels)
    cdef _Array source = _array("x", x, dtype, (None, None, None))
    cdef _Array target = _array("out", out, dtype, source.shape, True)
    cdef _Array factors = _array("weight", weight, "float32", source.shape[1:2])
    cdef _Array summands = _array("bias", bias, "float32", source.shape[1:2])
    call.threads, call.eps = _threads(threads), eps
    call.run = _choose(kernel_set, _Request("norm_pixels", dtype)).run.norm_pixels
    call.channels, call.pixels = source.shape[1:]
    call.tiles = (call.pixels + SUBP_NORM_PIXELS - 1) // SUBP_NORM_PIXELS
    call.items = source.shape[0] * call.tiles
    call.element = source.itemsize
    call.x, call.out, call.held = <char *>source.data, <char *>target.data, (source, target, factors, summands)
    call.weight, call.bias = <float *>factors.data, <float *>summands.data
    return call


cdef class _NormRuns(_Norm):
    cdef subp_norm_run_fn run
    cdef Py_ssize_t groups

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef Py_ssize_t at = i * self.channels * self.pixels, of_group = i % self.groups * self.channels
        self.run(
            self.x + at * self.element, self.channels, self.pixels, self.weight + of_group, self.bias + of_group,
            self.eps, self.out + at * self.element
        )


def bind_norm_runs(
    kernel_set,
    x,  # IN [runs, channels * pixels]
    weight,  # IN float32 [groups, channels]; run r has those of group r modulo groups
    bias,  # IN as weight
    float eps,
    out,  # OUT as x, and possibly the same memory
    threads,
    dtype="float32",  # of x and out
):
    """Binds the normalisation of every run."""
    cdef _NormRuns call = _NormRuns.__new__(_NormRuns)
    cdef _Array source = _array("x", x, dtype, (None, None))
    cdef _Array target = _array("out", out, dtype, source.shape, True)
    cdef _Array factors = _array("weight", weight, "float32", (None, None))
    cdef _Array summands = _array("bias", bias, "float32", factors.shape)
    call.threads, call.eps = _threads(threads), eps
    call.run = _choose(kernel_set, _Request("norm_run", dtype)).run.norm_run
    call.groups, call.channels = factors.shape
    if source.shape[1] % factors.shape[1]:
        wanted = f"a multiple of the {call.channels} channels"
        raise ValueError(f"x has runs of {source.shape[1]} numbers; expected {wanted}")
    call.items, call.pixels = source.shape[0], source.shape[1] // call.channels
    call.element = source.itemsize
    call.x, call.out, call.held = <char *>source.data, <char *>target.data, (source, target, factors, summands)
    call.weight, call.bias = <float *>factors.data, <float *>summands.data
    return call
