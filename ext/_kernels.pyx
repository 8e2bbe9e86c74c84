# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled kernels behind thin functions that validate every shape, then run without the GIL.

Work items are split statically among threads and each owns its part of the output, so results are
bit-identical for every number of threads.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, uint64_t

from operator import index
from sys import byteorder
from warnings import warn

import numpy as np

include "_c.pxi"
include "_threads.pxi"
include "_checks.pxi"
include "_rows.pxi"
include "_requantize.pxi"
include "_passes.pxi"
include "_convolutions.pxi"
include "_winograd.pxi"
include "_depthwise.pxi"
include "_operators.pxi"
include "_quantized_operators.pxi"
include "_resample.pxi"
