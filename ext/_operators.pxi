# Pooling and element-wise operators as bound calls: a part of _kernels.pyx.
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


# --- of quantized integers, uint8 ---

# Sums of so many of them stay within int32.
cdef Py_ssize_t _MOST_SUMMED = 2147483647 // 255


cdef class _Quantize(_Bound):
    cdef subp_quantize_fn run
    cdef const float *x
    cdef char *out
    cdef Py_ssize_t size
    cdef float inverse
    cdef int32_t zero

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef Py_ssize_t at = i * CHUNK
        self.run(self.x + at, min(CHUNK, self.size - at), self.inverse, self.zero, self.out + at)


def bind_quantize(
    kernel_set,
    x,  # IN float32 [n]
    float inverse,  # of the scale
    zero,  # point, 0 to 255
    out,  # OUT uint8 [n]
    threads,
):
    """Binds clamp(round(x * inverse) + zero), ties to even."""
    cdef _Quantize call = _Quantize.__new__(_Quantize)
    cdef _Array source = _array("x", x, "float32", (None,))
    cdef _Array target = _array("out", out, "uint8", source.shape, True)
    call.threads, call.run = _threads(threads), _choose(kernel_set, _Request("quantize", "uint8")).run.quantize
    call.inverse, call.zero, call.size = inverse, <int32_t>_whole("zero", zero, 0, 255), source.shape[0]
    call.items = (call.size + CHUNK - 1) // CHUNK
    call.x, call.out, call.held = <float *>source.data, <char *>target.data, (source, target)
    return call


cdef class _Dequantize(_Bound):
    cdef subp_dequantize_fn run
    cdef const char *x
    cdef float *out
    cdef Py_ssize_t size
    cdef float scale
    cdef int32_t zero

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef Py_ssize_t at = i * CHUNK
        self.run(self.x + at, min(CHUNK, self.size - at), self.zero, self.scale, self.out + at)


def bind_dequantize(
    kernel_set,
    x,  # IN uint8 [n]
    zero,  # point, 0 to 255
    float scale,
    out,  # OUT float32 [n]
    threads,
):
    """Binds (x - zero) * scale."""
    cdef _Dequantize call = _Dequantize.__new__(_Dequantize)
    cdef _Array source = _array("x", x, "uint8", (None,))
    cdef _Array target = _array("out", out, "float32", source.shape, True)
    call.threads, call.run = _threads(threads), _choose(kernel_set, _Request("dequantize", "uint8")).run.dequantize
    call.scale, call.zero, call.size = scale, <int32_t>_whole("zero", zero, 0, 255), source.shape[0]
    call.items = (call.size + CHUNK - 1) // CHUNK
    call.x, call.out, call.held = <char *>source.data, <float *>target.data, (source, target)
    return call


cdef class _Lookup(_Bound):
    cdef subp_lookup_fn run
    cdef const char *x
    cdef const char *table
    cdef char *out
    cdef Py_ssize_t size, chunks, tables, table_size, element
    cdef int to_float

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef Py_ssize_t run = i // self.chunks, at = i % self.chunks * CHUNK, begin = run * self.size + at
        self.run(
            self.x + begin, min(CHUNK, self.size - at), self.table + run % self.tables * self.table_size, self.to_float,
            self.out + begin * self.element
        )


def bind_lookup(
    kernel_set,
    x,  # IN uint8 [runs, n]
    table,  # IN [tables, 256]; run r has those of table r modulo tables
    out,  # OUT [runs, n], possibly the memory of x
    threads,
    dtype="uint8",  # of table and out: or float32
):
    """Binds table[x]."""
    cdef _Lookup call = _Lookup.__new__(_Lookup)
    cdef _Array source = _array("x", x, "uint8", (None, None))
    cdef _Array target, tables
    if dtype not in ("uint8", "float32"):
        raise ValueError(f"results are {dtype}; expected uint8 or float32")
    tables = _array("table", table, dtype, (None, 256))
    target = _array("out", out, dtype, source.shape, True)
    if source.shape[0] % tables.shape[0]:
        raise ValueError(f"x has {source.shape[0]} runs; expected a multiple of the {tables.shape[0]} tables")
    call.threads, call.run = _threads(threads), _choose(kernel_set, _Request("lookup", "uint8")).run.lookup
    call.to_float, call.tables, call.element = dtype == "float32", tables.shape[0], target.itemsize
    call.table_size, call.size = 256 * tables.itemsize, source.shape[1]
    call.chunks = (call.size + CHUNK - 1) // CHUNK
    call.items = source.shape[0] * call.chunks
    call.x, call.table, call.out = <char *>source.data, <char *>tables.data, <char *>target.data
    call.held = (source, tables, target)
    return call


cdef subp_rescale _rescale(value) except *:
    """The constants of a `Rescale` of requantize.py."""
    cdef subp_rescale found
    cdef str name
    for name in ("a_zero", "b_zero", "zero", "low", "high"):
        _whole(name, getattr(value, name), 0, 255)
    found.a_zero, found.b_zero = value.a_zero, value.b_zero
    found.a_factor, found.b_factor = value.a_factor, value.b_factor
    found.zero, found.low, found.high = value.zero, value.low, value.high
    return found


cdef class _QuantizedBinary(_Bound):
    cdef subp_quantized_binary_fn run
    cdef subp_rescale rescale
    cdef const char *a
    cdef const char *b
    cdef char *out
    cdef Py_ssize_t size, chunks
    cdef int multiply, one

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        cdef Py_ssize_t run = i // self.chunks, at = i % self.chunks * CHUNK, begin = run * self.size + at
        self.run(
            self.multiply, &self.rescale, self.a + begin, self.b + (run if self.one else begin), self.one,
            min(CHUNK, self.size - at), self.out + begin
        )


def bind_quantized_binary(
    kernel_set,
    bint multiply,  # else add
    a,  # IN uint8 [runs, n]
    b,  # IN as a, or, to multiply, [runs, 1]
    rescale,  # a Rescale of requantize.py
    out,  # OUT as a, and possibly the memory of an operand of this shape
    threads,
):
    """Binds the sum or product of quantized numbers, quantized."""
    cdef _QuantizedBinary call = _QuantizedBinary.__new__(_QuantizedBinary)
    cdef _Array first = _array("a", a, "uint8", (None, None)), second, target
    second = _array("b", b, "uint8", (first.shape[0], None))
    if second.shape[1] != first.shape[1] and (second.shape[1] != 1 or not multiply):
        wanted = f"that of a, {list(first.shape)}{', or one number a run' if multiply else ''}"
        raise ValueError(f"b has shape {list(second.shape)}; expected {wanted}")
    target = _array("out", out, "uint8", first.shape, True)
    call.threads, call.rescale = _threads(threads), _rescale(rescale)
    call.run = _choose(kernel_set, _Request("quantized_binary", "uint8")).run.quantized_binary
    call.multiply, call.one, call.size = multiply, second.shape[1] != first.shape[1], first.shape[1]
    call.chunks = (call.size + CHUNK - 1) // CHUNK
    call.items = first.shape[0] * call.chunks
    call.a, call.b, call.out = <char *>first.data, <char *>second.data, <char *>target.data
    call.held = (first, second, target)
    return call


cdef class _QuantizedPool(_Bound):
    cdef subp_quantized_pool_fn run
    cdef subp_quantized_pool pool
    cdef const char *x
    cdef char *out
    cdef int32_t *row
    cdef Py_ssize_t size, out_size, row_size

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        self.run(&self.pool, self.x + i * self.size, self.out + i * self.out_size, self.row + thread * self.row_size)


def bind_quantized_pool(
    kernel_set,
    x,  # IN uint8 [planes, height, width]
    kernel,  # (height, width), as stride, dilation and pad
    stride,
    dilation,
    pad,  # (top, left)
    factors,  # IN float32 [out_h, out_w], what the sums of x - zero are multiplied by; None for the maximum
    zeros,  # zero points of x and out, 0 to 255
    out,  # OUT uint8 [planes, out_h, out_w]
    threads,
):
    """Binds the pooling of every quantized plane; windows may hang over any edge."""
    cdef _QuantizedPool call = _QuantizedPool.__new__(_QuantizedPool)
    cdef _Array source = _array("x", x, "uint8", (None, None, None))
    cdef _Array target = _array("out", out, "uint8", (source.shape[0], None, None), True)
    cdef _Array given = None, rows
    cdef subp_window *window = &call.pool.window
    call.threads, call.items = _threads(threads), source.shape[0]
    call.run = _choose(kernel_set, _Request("quantized_pool", "uint8")).run.quantized_pool
    _describe(window, source.shape[1:], target.shape[1:], kernel, stride, dilation, pad)
    if factors is not None:
        given = _array("factors", factors, "float32", (window.out_h, window.out_w))
        padded = np.zeros(window.out_h * window.out_w + SUBP_FACTOR_SLACK, np.float32)
        padded[: window.out_h * window.out_w] = np.ravel(factors)
        given = _array("factors", padded, "float32", (None,))
    if factors is not None and min(window.kernel_h, window.height) > _MOST_SUMMED // min(window.kernel_w, window.width):
        raise ValueError(f"windows of {window.kernel_h}x{window.kernel_w}: their sums could overflow int32")
    call.pool.factors = _floats(given)
    call.pool.in_zero, call.pool.zero = _wholes("zeros", zeros, 2, 0)
    _whole("zero of x", call.pool.in_zero, 0, 255)
    _whole("zero of out", call.pool.zero, 0, 255)
    call.row_size = 2 * window.width + window.out_w + SUBP_POOL_SLACK
    rows = _array("row", np.empty((call.threads, call.row_size), np.int32), "int32", (None, None), True)
    call.x, call.out, call.row = <char *>source.data, <char *>target.data, <int32_t *>rows.data
    call.size, call.out_size = window.height * window.width, window.out_h * window.out_w
    call.held = (source, target, given, rows)
    return call


cdef class _QuantizedMean(_Bound):
    cdef subp_quantized_mean_fn run
    cdef subp_rescale rescale
    cdef const char *x
    cdef char *out
    cdef Py_ssize_t size

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        self.run(&self.rescale, self.x + i * self.size, self.size, self.out + i)


def bind_quantized_mean(
    kernel_set,
    x,  # IN uint8 [planes, pixels]
    rescale,  # a Rescale of requantize.py; its factor is that of the sum
    out,  # OUT uint8 [planes]
    threads,
):
    """Binds the average of every quantized plane, quantized."""
    cdef _QuantizedMean call = _QuantizedMean.__new__(_QuantizedMean)
    cdef _Array source = _array("x", x, "uint8", (None, None))
    cdef _Array target = _array("out", out, "uint8", (source.shape[0],), True)
    call.threads, call.rescale = _threads(threads), _rescale(rescale)
    call.run = _choose(kernel_set, _Request("quantized_mean", "uint8")).run.quantized_mean
    call.items, call.size = source.shape
    if call.size > _MOST_SUMMED:
        raise ValueError(f"planes of {call.size} pixels: their sums could overflow int32")
    call.x, call.out, call.held = <char *>source.data, <char *>target.data, (source, target)
    return call
