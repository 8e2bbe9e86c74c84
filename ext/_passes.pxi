# What compiled convolutions share: kernels, checks, and passes that threads divide.

cdef class _Kernels:
    """The kernels that a block row takes, one after the other."""

    cdef const subp_row **of_row
    cdef Py_ssize_t count

    def __cinit__(self, kernel_set, dtype, Py_ssize_t block):
        cdef Py_ssize_t n = 0
        cdef const subp_row *row
        self.of_row = <const subp_row **>PyMem_Malloc(block * sizeof(void *))
        if self.of_row == NULL:
            raise MemoryError()
        while n < block:
            row = _choose(kernel_set, _Request("conv2d", dtype, channels=block - n))
            self.of_row[self.count] = row
            n += row.channels
            self.count += 1
        for n in range(self.count):
            row = self.of_row[n]
            same = row.weight_dtype == self.of_row[0].weight_dtype and row.out_dtype == self.of_row[0].out_dtype
            if not same or row.interleave != self.of_row[0].interleave:
                names = f"{self.of_row[0].name.decode()} and {row.name.decode()}"
                raise ValueError(f"kernels {names} do not read the same weights")

    def __dealloc__(self):
        PyMem_Free(self.of_row)


cdef str _stored_type(const subp_row *row, _Requantize constants, str wanted):
    """The type of the outputs: that of the row, or float32 where integers' constants or the caller want it."""
    own = _DTYPES[row.out_dtype]
    if wanted not in ("", own) and (own, wanted) != ("bfloat16", "float32"):
        raise ValueError(f"out_dtype is {wanted!r}; kernels of {_DTYPES[row.dtype]} store {own}")
    return "float32" if constants is not None and constants.to_float else wanted or own


cdef class _InPasses:
    """A convolution as passes, each of channels to fill planes with, then parts to compute from the planes."""

    cdef object _arrays  # keeps alive what pointers lead to
    cdef tuple _in_shape, _out_shape  # (channels, height, width)
    cdef Py_ssize_t _passes, _fills  # of an image, of a pass
    cdef str _dtype, _out_dtype
    cdef Py_ssize_t _element
    cdef readonly Py_ssize_t scratch  # float32 for every thread, whatever the data type

    cdef _take_types(self, const subp_row *row):
        """The types of a row's arrays."""
        self._dtype, self._out_dtype = _DTYPES[row.dtype], _DTYPES[row.out_dtype]
        self._element = _FORMATS[self._dtype][1]

    cdef subp_conv_parts _divide(self, int threads) noexcept nogil:
        """Cuts a pass for so many threads."""

    cdef void _fill(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                    void *scratch) noexcept nogil:
        """Fills a channel's planes; `scratch` is shared by all threads."""

    cdef void _part(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, const subp_conv_parts *parts,
                    Py_ssize_t part, const void *scratch, void *own) noexcept nogil:
        """Computes a part from the planes in `scratch`; `own` is the thread's."""

    cdef void _whole(self, const subp_conv_arrays *arrays, Py_ssize_t pass_, void *own) noexcept nogil:
        """A pass by one thread alone."""

    def bind(
        self,
        x,  # IN [batch, in_channels, height, width]
        residual,  # IN as out, or None
        out,  # OUT [batch, out_channels, out_h, out_w]
        scratch,  # at least `scratch` floats for every thread; contents do not matter
        threads,
    ):
        """Returns a call that runs it on these arrays: out = activation(conv(x) + bias + residual).

        Raises:
            TypeError, ValueError: an argument that does not fit.
        """
        cdef _Passes call = _Passes.__new__(_Passes)
        cdef _Array source, target, addend, memory
        if self._arrays is None:
            raise ValueError("this convolution was not made completely; make another")
        call.threads = _threads(threads)
        source = _array("x", x, self._dtype, (None, *self._in_shape))
        target = _array("out", out, self._out_dtype, (source.shape[0], *self._out_shape), True)
        addend = _optional("residual", residual, self._out_dtype, target.shape)
        if addend is not None and self._dtype != self._out_dtype:
            raise ValueError(
                f"a residual beside outputs of {self._out_dtype} from {self._dtype}, which no kernel adds; expected "
                "None"
            )
        memory = _room(scratch, self.scratch * call.threads)
        call.arrays.x, call.arrays.out, call.arrays.residual = source.data, target.data, _data(addend)
        call.scratch = _data(memory)
        call.what, call.passes = self, self._passes * source.shape[0]
        call.held = (source, addend, target, memory)
        return call

    def run(self, x, residual, out, scratch, threads):
        """Runs it; arguments as for `bind`."""
        self.bind(x, residual, out, scratch, threads)()


cdef _Array _room(scratch, Py_ssize_t wanted):
    """Scratch memory of at least so many floats; None where none is wanted."""
    cdef _Array memory
    if not wanted:
        return None
    memory = _array("scratch", scratch, "float32", (None,), True)
    if memory.shape[0] < wanted:
        raise ValueError(f"scratch has {memory.shape[0]} floats; expected at least {wanted}")
    return memory


cdef class _Passes:
    """A convolution and the arrays it runs on, all of them checked."""

    cdef _InPasses what
    cdef tuple held  # keeps alive what pointers lead to
    cdef subp_conv_arrays arrays
    cdef void *scratch
    cdef Py_ssize_t passes
    cdef int threads

    def __call__(self):
        """Runs it."""
        cdef _InPasses what = self.what
        cdef Py_ssize_t i, n, fills, size, passes = self.passes
        cdef const subp_conv_arrays *arrays = &self.arrays
        cdef int threads = self.threads
        cdef char *memory = <char *>self.scratch
        cdef subp_conv_parts parts
        if what is None:
            raise ValueError("nothing is bound; use what `bind` returns")
        fills, size = what._fills, 4 * what.scratch
        if threads > 1:
            threads = _team(threads)
        if threads == 1:
            with nogil:
                for i in range(passes):
                    what._whole(arrays, i, memory)
            return
        # Passes of a thread's own need no exchange between caches; where they do not divide well, threads share each.
        if passes % threads == 0 or passes >= 4 * threads:
            for i in prange(passes, nogil=True, schedule="static", num_threads=threads):
                what._whole(arrays, i, memory + threadid() * size)
            return
        parts = what._divide(threads)
        for n in range(passes):
            if fills:
                for i in prange(fills, nogil=True, schedule="static", num_threads=threads):
                    what._fill(arrays, n, i, memory)
            for i in prange(parts.parts, nogil=True, schedule="static", num_threads=threads):
                what._part(arrays, n, &parts, i, memory, memory + threadid() * size)


# No kernel's tile has more output channels.
cdef enum: MAX_TILE_CHANNELS = 64


cdef _check_rows(rows, Py_ssize_t kept, in_channels, out_channels, groups, block, indices):
    """The block rows of a weight against the channels."""
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"{in_channels} input and {out_channels} output channels do not split into {groups} groups")
    expected = groups * ((out_channels // groups + block - 1) // block)
    if rows != expected:
        raise ValueError(f"indices have {rows} block rows; expected {expected}")
    if np.min(indices) < 0 or np.max(indices) >= in_channels // groups:
        raise ValueError(
            f"indices are from {np.min(indices)} to {np.max(indices)}; expected channels from 0 to "
            f"{in_channels // groups - 1}, those of a group"
        )


cdef _Array _offsets(indices, in_channels, stride, columns=1, step=0, missing=0):
    """Where the planes of kept channels are, `stride` elements apart, and of each its columns, `step` elements apart;
    the last `missing` times more. In 32 bits, because products in 64 would compete with the kernels' own for a port of
    the CPU."""
    if in_channels * stride >= 2**31:
        raise ValueError(f"{in_channels} channels of {stride} elements are too large; expected less than 2**31 in all")
    offsets = indices[:, :, None] * np.int32(stride) + np.arange(columns, dtype=np.int32) * np.int32(step)
    offsets = np.pad(offsets.reshape(len(indices), -1), ((0, 0), (0, missing)), mode="edge").astype(np.int32, order="C")
    return _array("offsets", offsets, "int32", (None, None))


cdef _own_order(order, channels):
    """A permutation of so many channels, copied so that nobody can change it after the check; None stays None."""
    if order is None:
        return None
    _array("order", order, "int32", (channels,))
    order = np.array(order, np.intp)
    if not np.array_equal(np.sort(order), np.arange(channels)):
        raise ValueError(f"order is no permutation of the {channels} output channels")
    return order


cdef _Array _multiples(order, Py_ssize_t count, Py_ssize_t size):
    """Where channels are that are `size` elements each: the first `count`, or those of an order."""
    channels = np.arange(count, dtype=np.intp) if order is None else order
    return _array("offsets", channels * np.intp(size), "intp", (count,))
