# Planes of other sizes as bound calls: a part of _kernels.pyx. They are plain C, for any kernel set.
#
# Copies take elements of any type: arrays of bytes [..., elements * bytes of one].


cdef _Array _indices(str name, own, count, Py_ssize_t below):
    """Indices of rows or columns, as many as `count` or any number. `own` is a copy: others could change what they gave
    between check and use."""
    cdef _Array found = _array(name, own, "int32", (count,))
    if own.min() < 0 or own.max() >= below:
        raise ValueError(f"{name} are from {own.min()} to {own.max()}; expected 0 to {below - 1}")
    return found


cdef tuple _pairs(subp_pairs *pairs, str name, value, Py_ssize_t count, Py_ssize_t size):
    """Fills in what rows or columns are made of; returns what keeps it alive."""
    cdef _Array low, high, low_weight, high_weight
    if not isinstance(value, (tuple, list)) or len(value) != 4:
        raise ValueError(f"{name} is {_told(value)}; expected (low, high, low_weight, high_weight)")
    below, above = np.array(value[0], np.int32), np.array(value[1], np.int32)
    low, high = _indices(f"low of {name}", below, count, size), _indices(f"high of {name}", above, count, size)
    low_weight = _array(f"low weights of {name}", value[2], "float32", (count,))
    high_weight = _array(f"high weights of {name}", value[3], "float32", (count,))
    pairs.low, pairs.high = <const int32_t *>low.data, <const int32_t *>high.data
    pairs.low_weight, pairs.high_weight = <const float *>low_weight.data, <const float *>high_weight.data
    return low, high, low_weight, high_weight


cdef class _Bilinear(_Bound):
    cdef subp_bilinear call
    cdef const float *x
    cdef float *out
    cdef float *row
    cdef Py_ssize_t size, out_size

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        subp_bilinear_plane(
            &self.call, self.x + i * self.size, self.out + i * self.out_size, self.row + thread * 2 * self.call.out_w
        )


def bind_bilinear(
    x,  # IN float32 [planes, height, width]
    rows,  # (low, high, low_weight, high_weight), int32 and float32 [out_h]
    columns,  # likewise [out_w]
    bint doubles,  # see kernels/resample.h
    out,  # OUT float32 [planes, out_h, out_w]
    threads,
):
    """Binds the interpolation of every plane between two rows and two columns."""
    cdef _Bilinear call = _Bilinear.__new__(_Bilinear)
    cdef _Array source = _array("x", x, "float32", (None, None, None))
    cdef _Array target = _array("out", out, "float32", (source.shape[0], None, None), True), room
    call.threads, call.items = _threads(threads), source.shape[0]
    call.call.width, call.call.doubles = source.shape[2], doubles
    call.call.out_h, call.call.out_w = target.shape[1:]
    if doubles and target.shape[2] != 2 * source.shape[2]:
        raise ValueError(f"the output is {target.shape[2]} wide; expected twice {source.shape[2]}")
    held = _pairs(&call.call.rows, "rows", rows, target.shape[1], source.shape[1])
    held += _pairs(&call.call.columns, "columns", columns, target.shape[2], source.shape[2])
    room = _array("row", np.empty((call.threads, 2 * target.shape[2]), np.float32), "float32", (None, None), True)
    call.x, call.out, call.row = <float *>source.data, <float *>target.data, <float *>room.data
    call.size, call.out_size = source.shape[1] * source.shape[2], target.shape[1] * target.shape[2]
    call.held = (source, target, room, *held)
    return call


cdef Py_ssize_t _element(value) except -1:
    """The bytes of an element that copies take."""
    if value not in (1, 2, 4, 8):
        raise ValueError(f"elements have {value} bytes; expected 1, 2, 4 or 8")
    return value


cdef class _Gather(_Bound):
    cdef subp_gather call
    cdef const char *x
    cdef char *out
    cdef Py_ssize_t size, out_size

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        subp_gather_plane(&self.call, self.x + i * self.size, self.out + i * self.out_size)


def bind_gather(
    x,  # IN uint8 [planes, height, width * element]
    rows,  # IN int32 [out_h], the input's row for each of the output's
    columns,  # IN int32 [out_w]
    element,  # bytes
    out,  # OUT uint8 [planes, out_h, out_w * element]
    threads,
):
    """Binds out[:, y, x] = x[:, rows[y], columns[x]] of every plane."""
    cdef _Gather call = _Gather.__new__(_Gather)
    cdef _Array source = _array("x", x, "uint8", (None, None, None))
    cdef _Array down, across, target
    call.call.element = _element(element)
    if source.shape[2] % call.call.element:
        raise ValueError(f"rows of {source.shape[2]} bytes are no whole elements of {element}")
    width = source.shape[2] // call.call.element
    rows, columns = np.array(rows, np.int32), np.array(columns, np.int32)
    down, across = _indices("rows", rows, None, source.shape[1]), _indices("columns", columns, None, width)
    wide = across.shape[0] * call.call.element
    target = _array("out", out, "uint8", (source.shape[0], down.shape[0], wide), True)
    call.threads, call.items = _threads(threads), source.shape[0]
    call.call.width, call.call.out_h, call.call.out_w = width, down.shape[0], across.shape[0]
    call.call.rows, call.call.columns = <const int32_t *>down.data, <const int32_t *>across.data
    call.call.first, call.call.last = _longest_run(columns)
    call.x, call.out = <char *>source.data, <char *>target.data
    call.size, call.out_size = source.shape[1] * source.shape[2], target.shape[1] * target.shape[2]
    call.held = (source, target, down, across)
    return call


cdef tuple _longest_run(columns):
    """Where the longest run of consecutive indices begins and ends."""
    breaks = np.array([0, *(np.flatnonzero(np.diff(columns) != 1) + 1), len(columns)])
    longest = int(np.diff(breaks).argmax())
    return int(breaks[longest]), int(breaks[longest + 1])


cdef class _Weave(_Bound):
    cdef subp_weave call
    cdef const void **sources
    cdef Py_ssize_t *strides
    cdef char *out
    cdef Py_ssize_t out_size

    def __dealloc__(self):
        PyMem_Free(self.sources)
        PyMem_Free(self.strides)

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        subp_weave_plane(&self.call, i, self.out + i * self.out_size)


def bind_weave(
    sources,  # IN for each of step_h * step_w phases uint8 [planes, rows, columns * element]; or one array of them all,
    # [planes, phases, rows, columns * element]
    step,  # (height, width)
    element,  # bytes
    out,  # OUT uint8 [planes, out_h, out_w * element]
    threads,
):
    """Binds out[:, y, x] = phase (y % step_h, x % step_w)[:, y // step_h, x // step_w] of every plane."""
    cdef _Weave call = _Weave.__new__(_Weave)
    cdef _Array target = _array("out", out, "uint8", (None, None, None), True), source
    cdef Py_ssize_t n, phases
    call.call.element = _element(element)
    call.call.step_h, call.call.step_w = _wholes("step", step, 2)
    if target.shape[2] % call.call.element:
        raise ValueError(f"rows of {target.shape[2]} bytes are no whole elements of {element}")
    call.call.out_h, call.call.out_w = target.shape[1], target.shape[2] // call.call.element
    if call.call.step_h > call.call.out_h or call.call.step_w > call.call.out_w:
        raise ValueError(f"steps of {list(step)} do not fit an output of {call.call.out_h}x{call.call.out_w}")
    phases, held = call.call.step_h * call.call.step_w, [target]
    call.sources = <const void **>PyMem_Malloc(phases * sizeof(void *))
    call.strides = <Py_ssize_t *>PyMem_Malloc(phases * sizeof(Py_ssize_t))
    if call.sources == NULL or call.strides == NULL:
        raise MemoryError()
    stacked, planes = not isinstance(sources, (list, tuple)), target.shape[0]
    if not stacked and len(sources) != phases:
        raise ValueError(f"{len(sources)} sources; expected one for each of {phases} phases")
    for n in range(phases):
        rows = (call.call.out_h - n // call.call.step_w + call.call.step_h - 1) // call.call.step_h
        columns = (call.call.out_w - n % call.call.step_w + call.call.step_w - 1) // call.call.step_w
        shape = (rows, columns * call.call.element)
        if stacked:
            source = _array("sources", sources, "uint8", (planes, phases, *shape))
        else:
            source = _array("sources", sources[n], "uint8", (planes, *shape))
        held.append(source)
        size = rows * columns
        call.sources[n] = <const char *>source.data + (n * <Py_ssize_t>(size * call.call.element) if stacked else 0)
        call.strides[n] = size * phases if stacked else size
    call.call.sources, call.call.strides = call.sources, call.strides
    call.threads, call.items = _threads(threads), planes
    call.out, call.out_size, call.held = <char *>target.data, target.shape[1] * target.shape[2], tuple(held)
    return call
