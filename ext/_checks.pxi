# What memory safety rests on: sizes and arrays, checked with errors that are raised, which `python -O` keeps.

# Sizes beyond it are mistakes, and products of two of them fit a Py_ssize_t.
cdef enum:
    MAX_SIZE = 2147483647
    MAX_THREADS = 4096

# Letters of the buffer protocol by the kind of number they stand for.
_LETTERS = {"f": "efd", "i": "bhilq", "u": "BHILQ", "?": "?"}
_KINDS = {letter: kind for kind in _LETTERS for letter in _LETTERS[kind]}


# How the buffer protocol marks this machine's byte order.
_NATIVE_ORDER = "<" if byteorder == "little" else ">"


cdef Py_ssize_t _whole(str name, value, Py_ssize_t least = 1, Py_ssize_t most = MAX_SIZE) except -1:
    """A whole number in a range, `least` being at least 0."""
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected a whole number from {least} to {most}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} is {number}; expected a whole number from {least} to {most}")
    return number


cdef tuple _wholes(str name, value, Py_ssize_t count, Py_ssize_t least = 1):
    """So many whole numbers of at least `least`."""
    try:
        values = tuple(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected {count} whole numbers") from None
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} numbers; expected {count}")
    return tuple([_whole(name, number, least) for number in values])


cdef int _threads(value) except -1:
    return <int>_whole("threads", value, 1, MAX_THREADS)


cdef str _told(value):
    """An array or anything else, for a message."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


cdef str _wanted(dtype, tuple shape, bint writable):
    """What an array should have been, for a message."""
    sizes = ", ".join(["any" if size is None else str(size) for size in shape])
    return f"expected a {'writable ' if writable else ''}C-contiguous {dtype} array of shape [{sizes}]"


cdef class _Array:
    """The memory of an array of known type and shape, held as long as this lives."""

    cdef Py_buffer _view
    cdef bint _held
    cdef void *data
    cdef tuple shape
    cdef Py_ssize_t itemsize

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._view)


cdef _Array _array(str name, value, dtype, tuple shape, bint writable = False):
    """Takes hold of a C-contiguous array.

    Args:
        name: of the argument, for messages.
        value: what was passed for it.
        dtype: a name of `_FORMATS`, in _rows.pxi.
        shape: what it must be; None for any size of at least 1.
        writable: whether it is an output.

    Raises:
        TypeError: not an array.
        ValueError: another type or shape, not contiguous, not aligned to its elements, or not writable.
    """
    cdef _Array found = _Array.__new__(_Array)
    cdef int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0)
    cdef Py_ssize_t itemsize
    cdef str letter
    if not isinstance(dtype, str) or dtype not in _FORMATS:
        raise ValueError(f"data type {dtype!r} is not known; expected one of {', '.join(_FORMATS)}")
    letter, itemsize = _FORMATS[dtype]
    try:
        PyObject_GetBuffer(value, &found._view, flags)
    except TypeError:
        raise TypeError(f"{name} is {_told(value)}; {_wanted(dtype, shape, writable)}") from None
    except (ValueError, BufferError) as error:
        raise ValueError(f"{name} is {_told(value)} ({error}); {_wanted(dtype, shape, writable)}") from None
    found._held = True
    given = "B" if found._view.format == NULL else found._view.format.decode()
    kind = _KINDS.get(given.lstrip("@=" + _NATIVE_ORDER))
    found.shape = tuple([found._view.shape[i] for i in range(found._view.ndim)])
    fits = len(found.shape) == len(shape) and kind == _KINDS[letter] and found._view.itemsize == itemsize
    if not fits or not all([b == a if a is not None else b > 0 for a, b in zip(shape, found.shape)]):
        raise ValueError(f"{name} is {_told(value)}; {_wanted(dtype, shape, writable)}")
    if <size_t>found._view.buf % <size_t>itemsize:
        told = f"{_told(value)} and not aligned to {itemsize} bytes"
        raise ValueError(f"{name} is {told}; {_wanted(dtype, shape, writable)}")
    found.data, found.itemsize = found._view.buf, itemsize
    return found


cdef _Array _optional(str name, value, dtype, tuple shape):
    """As `_array`; None stays None."""
    return None if value is None else _array(name, value, dtype, shape)


cdef float *_floats(_Array array) noexcept:
    """The memory of an array that may be None."""
    return NULL if array is None else <float *>array.data


cdef void *_data(_Array array) noexcept:
    """As `_floats`, of any type."""
    return NULL if array is None else array.data


cdef class _Bound:
    """A call whose arguments are all checked and resolved: items of work that no two threads share memory for."""

    cdef Py_ssize_t items
    cdef int threads
    cdef tuple held  # keeps alive what pointers lead to

    cdef void _item(self, Py_ssize_t i, int thread) noexcept nogil:
        """Does one item."""

    def __call__(self):
        """Runs it."""
        cdef Py_ssize_t i
        cdef int threads = 1 if self.threads == 1 or self.items == 1 else _team(self.threads)
        # A parallel region costs microseconds, and even one of a single thread half of one.
        if threads == 1:
            with nogil:
                for i in range(self.items):
                    self._item(i, 0)
            return
        for i in prange(self.items, nogil=True, schedule="static", num_threads=threads):
            self._item(i, threadid())
