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
from libc.stdint cimport int32_t

from operator import index
from sys import byteorder

import numpy as np

include "_c.pxi"
include "_checks.pxi"


def release_threads():
    """Ends the threads that OpenMP keeps for the calling one; the next run starts new ones."""
    omp_pause_resource_all(omp_pause_soft)


def cpu_features():
    """Returns {feature: whether this CPU and system can use it}."""
    found = {}
    cdef int i = 0
    while subp_cpu_features[i] != NULL:
        found[subp_cpu_features[i].decode()] = bool(subp_cpu_has(subp_cpu_features[i]))
        i += 1
    return found


def kernel_sets():
    """Returns the compiled kernel sets, worst first: dicts with name, needs and usable (on this CPU)."""
    sets = []
    for isa in range(SUBP_ISA_COUNT):
        entry = subp_kernel_set_at(isa)
        sets.append({"name": entry.name.decode(), "needs": entry.needs.decode(), "usable": bool(entry.usable)})
    return sets


def fma_loop(kernel_set, Py_ssize_t rounds):
    """Runs a loop of independent multiply-adds in the widest registers of a set; returns how many FLOPs it took."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    with nogil:
        entry.peak(rounds, 0.5)
    return entry.peak_flops * rounds


def kernels():
    """Returns every convolution kernel of the build: dicts with name, set, channels and pixels of a tile."""
    sets = [entry["name"] for entry in kernel_sets()]
    return [
        {
            "name": subp_kernel_table[i].name.decode(),
            "set": sets[subp_kernel_table[i].isa],
            "channels": subp_kernel_table[i].channels,
            "pixels": subp_kernel_table[i].pixels,
        }
        for i in range(subp_kernel_count)
    ]


def depthwise_kernels():
    """Returns every depthwise kernel of the build: dicts with name, set, size and stride; 0 for any window."""
    sets = [entry["name"] for entry in kernel_sets()]
    return [
        {
            "name": subp_depthwise_table[i].name.decode(),
            "set": sets[subp_depthwise_table[i].isa],
            "size": subp_depthwise_table[i].size,
            "stride": subp_depthwise_table[i].stride,
        }
        for i in range(subp_depthwise_count)
    ]


def winograd_kernels():
    """Returns the transforms of the build: dicts with name, set and size, the outputs of a tile along a side."""
    sets = [entry["name"] for entry in kernel_sets()]
    return [
        {
            "name": subp_winograd_table[i].name.decode(),
            "set": sets[subp_winograd_table[i].isa],
            "size": subp_winograd_table[i].size,
        }
        for i in range(subp_winograd_count)
    ]


def winograd_name(kernel_set, int size):
    """Returns the transforms for tiles of size x size outputs; None if the set and those below it have none."""
    cdef const subp_winograd_kernel *found = subp_find_winograd(_set_number(kernel_set), size)
    return None if found == NULL else found.name.decode()


def activations():
    """Returns the names of the activations the store can fuse."""
    return tuple(subp_activation_name(i).decode() for i in range(1, SUBP_ACT_COUNT))


def kernel_name(kernel_set, channels):
    """Returns the convolution kernel that runs a tile of at most `channels` output channels."""
    return subp_find_kernel(_set_number(kernel_set), _whole("channels", channels)).name.decode()


def depthwise_name(kernel_set, kernel, stride, dilation):
    """Returns the kernel that runs a depthwise convolution; every pair is (height, width)."""
    cdef subp_window window
    _describe(&window, (1, 1), (1, 1), kernel, stride, dilation, (0, 0))
    return subp_find_depthwise(_set_number(kernel_set), &window).name.decode()


def tiles(kernel_set, block):
    """Returns the (channels, pixels) of the tiles that a block row is computed in."""
    cdef int isa = _set_number(kernel_set)
    found, block = [], _whole("block", block)
    while block > 0:
        kernel = subp_find_kernel(isa, block)
        found.append((kernel.channels, kernel.pixels))
        block -= kernel.channels
    return found


# The letter of the buffer protocol and the bytes of an element, by the name of its type.
_FORMATS = {"float32": ("f", 4), "int32": ("i", 4), "intp": ("l", sizeof(Py_ssize_t))}


def _set_number(name):
    sets = kernel_sets()
    for number, entry in enumerate(sets):
        if entry["name"] == name and entry["usable"]:
            return number
    usable = [entry["name"] for entry in sets if entry["usable"]]
    raise ValueError(f"kernel set {name!r} is not one this CPU can run; available: {', '.join(usable)}")


def _activation_number(name):
    if name is None:
        return 0
    if name not in activations():
        raise ValueError(f"activation {name!r} is not known; expected None or one of {', '.join(activations())}")
    return 1 + activations().index(name)


include "_convolutions.pxi"
include "_operators.pxi"
