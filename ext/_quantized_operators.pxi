# Operators of quantized integers, uint8, as bound calls: a part of _kernels.pyx.
#
# Each bind_* function checks its arguments once and returns an object whose call takes none.

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
