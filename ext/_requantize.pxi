# The constants of requantize.py as kernels take them.

cdef class _Requantize:
    """A `Requantization` of so many output channels, all of it checked; `c` is valid as long as this lives.

    Raises:
        TypeError, ValueError: a field that does not fit.
    """

    cdef subp_requantize c
    cdef _Array start, factor
    cdef int padding
    cdef bint to_float

    def __cinit__(self, requantize, Py_ssize_t channels):
        cdef subp_requantize *c = &self.c
        try:
            start, factor = np.array(requantize.start), np.array(requantize.factor)  # which nobody can change
            c.zero, c.residual_zero = _byte("zero", requantize.zero), _byte("residual_zero", requantize.residual_zero)
            c.low, c.high = _byte("low", requantize.low), _byte("high", requantize.high)
            self.padding, self.to_float = _byte("padding", requantize.padding), bool(requantize.to_float)
            residual_factor = float(requantize.residual_factor)
        except AttributeError:
            raise TypeError(f"requantize is {_told(requantize)}; expected a Requantization") from None
        self.start = _array("start", start, "int32", (channels,))
        self.factor = _array("factor", factor, "float32", (channels,))
        c.residual_factor = <float>residual_factor
        if not (np.isfinite(factor).all() and np.isfinite(residual_factor)):
            raise ValueError("factor or residual_factor has a number that is not finite")
        if c.low > c.high:
            raise ValueError(f"low is {c.low} and high {c.high}; expected low to be no more than high")


cdef int _byte(str name, value) except -1:
    """What a uint8 can be."""
    return <int>_whole(name, value, 0, 255)


cdef _Requantize _requantize(value, str dtype, Py_ssize_t channels, bint other):
    """The constants for a kernel of this type, or None where it has no use for them.

    Args:
        value: a `Requantization` or None.
        dtype: of the activations.
        channels: of the output.
        other: whether there is a bias or an activation, which the constants hold already.
    """
    cdef _Requantize found
    if dtype != "uint8":
        if value is not None:
            raise ValueError(f"requantize is for sums of integers; expected None for {dtype}")
        return None
    if value is None:
        raise ValueError("sums of integers need requantize, a Requantization")
    if other:
        raise ValueError("bias and activation of a convolution of integers are in its requantize; expected None here")
    return _Requantize(value, channels)
