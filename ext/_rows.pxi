# What was built, what this CPU can run of it, and which row of the kernels' lists runs what.

# The letter of the buffer protocol and the bytes of an element, by the name of a type.
_FORMATS = {"int32": ("i", 4), "intp": ("l", sizeof(Py_ssize_t))}
_DTYPES, _OPERATORS, _ACTIVATIONS = [], [], []
for _i in range(SUBP_DTYPE_COUNT):
    _DTYPES.append(subp_dtypes[_i].name.decode())
    _FORMATS[_DTYPES[_i]] = (subp_dtypes[_i].letter.decode(), subp_dtypes[_i].size)
for _i in range(SUBP_OP_COUNT):
    _OPERATORS.append(subp_operator_names[_i].decode())
for _i in range(SUBP_ACT_COUNT):
    _ACTIVATIONS.append(subp_activation_names[_i].decode())


cdef tuple _feature_names(uint64_t mask):
    """The features of a mask, in the order of the list."""
    return tuple([subp_feature_names[i].decode() for i in range(SUBP_FEATURE_COUNT) if mask >> i & 1])


cdef uint64_t _feature_mask(names) except? 0:
    cdef uint64_t mask = 0
    known = [subp_feature_names[i].decode() for i in range(SUBP_FEATURE_COUNT)]
    for name in names:
        if name not in known:
            raise ValueError(f"CPU feature {name!r} is not known; expected some of {', '.join(known)}")
        mask |= <uint64_t>1 << <int>known.index(name)
    return mask


def cpu_features():
    """Returns {feature: whether this CPU and system can use it}."""
    cdef uint64_t here = subp_cpu_features()
    return {name: name in _feature_names(here) for name in _feature_names(subp_cpu_known())}


def kernel_sets():
    """Returns the compiled kernel sets, worst first: dicts with name, needs, features and usable (on this CPU)."""
    cdef uint64_t here = subp_cpu_features()
    cdef int i
    return [
        {
            "name": subp_kernel_sets[i].name.decode(),
            "needs": subp_kernel_sets[i].needs.decode(),
            "features": _feature_names(subp_kernel_sets[i].features),
            "usable": not subp_kernel_sets[i].features & ~here,
        }
        for i in range(SUBP_SET_COUNT)
    ]


cdef dict _row(const subp_row *row):
    return {
        "name": row.name.decode(),
        "operator": _OPERATORS[row.op],
        "dtype": _DTYPES[row.dtype],
        "weight_dtype": _DTYPES[row.weight_dtype],
        "out_dtype": _DTYPES[row.out_dtype],
        "set": subp_kernel_sets[row.set].name.decode(),
        "features": _feature_names(row.features),
        "channels": row.channels,
        "pixels": row.pixels,
        "interleave": row.interleave,
        "packing": row.packing.decode(),
        "tolerance": row.tolerance,
        "size": row.size,
        "stride": row.stride,
        "usable": not row.features & ~subp_cpu_features(),
    }


def rows():
    """Returns every kernel of the build, worst first: dicts of what kernels/rows_*.inc tells of it, and usable."""
    cdef int i
    return [_row(&subp_row_table[i]) for i in range(subp_row_count)]


def activations():
    """Returns the names of the activations the store can fuse."""
    return tuple(_ACTIVATIONS[1:])


cdef int _number(str what, name, list names) except -1:
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"{what} {name!r} is not known; expected one of {', '.join(names)}")
    return names.index(name)


cdef int _activation_number(name) except -1:
    if name is None:
        return 0
    if not isinstance(name, str) or name not in _ACTIVATIONS[1:]:
        raise ValueError(f"activation {name!r} is not known; expected None or one of {', '.join(activations())}")
    return _ACTIVATIONS.index(name)


cdef uint64_t _admitted(kernel_set) except? 0:
    """The features that rows may need: those of a set, or all of this CPU for None."""
    cdef uint64_t here = subp_cpu_features()
    cdef int i
    if kernel_set is None:
        return here
    usable = []
    for i in range(SUBP_SET_COUNT):
        if subp_kernel_sets[i].features & ~here:
            continue
        name = subp_kernel_sets[i].name.decode()
        if name == kernel_set:
            return subp_kernel_sets[i].features
        usable.append(name)
    raise ValueError(f"kernel set {kernel_set!r} is not one this CPU can run; available: {', '.join(usable)}")


cdef class _Request:
    """What is to be run, for the choice of a row."""

    cdef subp_request c
    cdef subp_window window

    def __cinit__(self, operator, dtype, *, channels=None, kernel=None, stride=(1, 1), dilation=(1, 1), size=None):
        self.c.op = _number("operator", operator, _OPERATORS)
        self.c.dtype = _number("data type", dtype, _DTYPES)
        self.c.channels = MAX_SIZE if channels is None else _whole("channels", channels)
        self.c.size = 0 if size is None else _whole("size", size)
        _describe(&self.window, (1, 1), (1, 1), (1, 1) if kernel is None else kernel, stride, dilation, (0, 0))
        self.c.window = &self.window


cdef const subp_row *_choose(kernel_set, _Request request) except NULL:
    """The row that runs it.

    Raises:
        ValueError: there is none.
    """
    cdef const subp_row *row = subp_choose(subp_row_table, subp_row_count, _admitted(kernel_set), &request.c)
    if row == NULL:
        wanted = f"{_DTYPES[request.c.dtype]} kernel for {_OPERATORS[request.c.op]}"
        raise ValueError(f"no {wanted} among those of kernel set {kernel_set or 'any this CPU can run'}")
    return row


def choose(kernel_set, operator, dtype, **shape):
    """Finds the row that runs an operator.

    Args:
        kernel_set: admits the rows that need no more than this set does; None admits all that this CPU can run.
        operator: of the rows.
        dtype: of the activations.
        shape: conv2d: channels, those there are for a tile; depthwise: kernel, stride and dilation, (height, width)
            each; winograd: size, outputs of a tile along a side.

    Returns:
        The row's name, and the better ones, best first, as (name, why it is not taken); None if there is no row.

    Raises:
        ValueError: an unknown kernel set, operator or data type, or one of the set this CPU cannot run.
    """
    cdef _Request request
    cdef uint64_t features = _admitted(kernel_set), here = subp_cpu_features()
    try:
        request = _Request(operator, dtype, **shape)
    except ValueError:
        if operator in _OPERATORS and isinstance(dtype, str) and dtype not in _DTYPES:
            return None  # a type that no kernel of this build has
        raise
    return _explained(subp_row_table, subp_row_count, features, here, request, kernel_set)


cdef object _explained(
    const subp_row *table, int count, uint64_t features, uint64_t here, _Request request, kernel_set
):
    """What `choose` returns, from any table and for any CPU."""
    cdef const subp_row *found = subp_choose(table, count, features, &request.c)
    cdef int i
    if found == NULL:
        return None
    better = []
    for i in range(count - 1, <int>(found - table), -1):
        if subp_row_fits(&table[i], &request.c):
            lacks = _feature_names(table[i].features & ~here)
            why = f"this CPU lacks {', '.join(lacks)}" if lacks else f"SUBP_KERNEL={kernel_set} leaves it out"
            better.append((table[i].name.decode(), why))
    return found.name.decode(), better


def choose_among(made_up, features, operator, dtype, **shape):
    """As `choose`, for tests: from other rows, on a CPU with other features.

    Args:
        made_up: dicts with name, operator, dtype, features and, where it matters, channels, size and stride.
        features: names of those that the CPU has.
    """
    cdef _Request request = _Request(operator, dtype, **shape)
    cdef subp_row *table = <subp_row *>PyMem_Malloc((len(made_up) + 1) * sizeof(subp_row))
    cdef int i
    cdef bytes text
    names = [row["name"].encode() for row in made_up]
    try:
        if table == NULL:
            raise MemoryError()
        for i, row in enumerate(made_up):
            text = names[i]
            table[i].name = text
            table[i].op = _number("operator", row["operator"], _OPERATORS)
            table[i].dtype = _number("data type", row["dtype"], _DTYPES)
            table[i].features = _feature_mask(row["features"])
            table[i].channels, table[i].size = row.get("channels", 1), row.get("size", 0)
            table[i].stride = row.get("stride", 0)
        mask = _feature_mask(features)
        return _explained(table, len(made_up), mask, mask, request, None)
    finally:
        PyMem_Free(table)


def tiles(kernel_set, block, dtype="float32"):
    """Returns the (channels, pixels, packing) of the tiles that a block row is computed in."""
    cdef const subp_row *row
    found, block = [], _whole("block", block)
    while block > 0:
        row = _choose(kernel_set, _Request("conv2d", dtype, channels=block))
        found.append((row.channels, row.pixels, row.packing.decode()))
        block -= row.channels
    return found


def fma_loop(kernel_set, Py_ssize_t rounds, dtype="float32"):
    """Runs a loop of independent multiply-adds in the widest registers of a set; returns how many FLOPs it took."""
    cdef subp_peak_fn run = _choose(kernel_set, _Request("peak", dtype)).run.peak
    cdef Py_ssize_t flops
    with nogil:
        flops = run(rounds, 0.5)
    return flops * rounds
