# Pooling and element-wise operators: a part of _kernels.pyx.

# Elements of a work item of the element-wise operators.
cdef enum:
    CHUNK = 16384


def pool(
    str kernel_set,
    const float[:, :, ::1] x,  # IN [planes, height, width]
    kernel,  # (height, width), as stride, dilation and pad
    stride,
    dilation,
    pad,  # (top, left)
    counts,  # (rows, columns) float32, what an average divides by; None for the maximum
    float[:, :, ::1] out,  # OUT [planes, out_h, out_w]
    int threads,
):
    """Pools every plane; windows may hang over any edge."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    cdef subp_pool p
    cdef const float[::1] row_counts, column_counts
    cdef Py_ssize_t plane, planes = x.shape[0], size = x.shape[1] * x.shape[2], out_size = out.shape[1] * out.shape[2]
    assert planes == out.shape[0] and planes > 0 and size > 0 and out_size > 0 and threads > 0
    _describe(&p.window, (x.shape[1], x.shape[2]), (out.shape[1], out.shape[2]), kernel, stride, dilation, pad)
    p.average = counts is not None
    if counts is not None:
        row_counts, column_counts = counts
        assert row_counts.shape[0] == p.window.out_h and column_counts.shape[0] == p.window.out_w
        p.row_counts, p.column_counts = &row_counts[0], &column_counts[0]
    rows = np.empty((threads, p.window.width), np.float32)
    cdef float[:, ::1] row = rows
    cdef const float *source = &x[0, 0, 0]
    cdef float *target = &out[0, 0, 0]
    for plane in prange(planes, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        entry.pool(&p, source + plane * size, target + plane * out_size, &row[threadid(), 0])


def mean(
    str kernel_set,
    const float[:, ::1] x,  # IN [planes, pixels]
    float[::1] out,  # OUT [planes]
    int threads,
):
    """Averages every plane."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    cdef Py_ssize_t plane, planes = x.shape[0], size = x.shape[1]
    assert planes == out.shape[0] and planes > 0 and size > 0 and threads > 0
    for plane in prange(planes, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        out[plane] = entry.mean(&x[plane, 0], size)


def binary(
    str kernel_set,
    bint multiply,  # else add
    const float[:, ::1] a,  # IN [runs, n]
    const float[:, ::1] b,  # IN as a, or [runs, 1]
    activation,  # a name, or None
    float[:, ::1] out,  # OUT as a
    int threads,
):
    """Computes activation(a + b) or activation(a * b)."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    cdef int number = _activation_number(activation)
    cdef Py_ssize_t n = a.shape[1], chunks = (n + CHUNK - 1) // CHUNK, items = a.shape[0] * chunks, i, run, at
    cdef bint one = b.shape[1] == 1
    assert a.shape[0] == b.shape[0] == out.shape[0] and n == out.shape[1] and (one or b.shape[1] == n)
    assert items > 0 and threads > 0
    for i in prange(items, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        run = i // chunks
        at = i % chunks * CHUNK
        entry.binary(
            multiply, &a[run, at], &b[run, 0 if one else at], one, min(CHUNK, n - at), number, &out[run, at]
        )


def activate(
    str kernel_set,
    const float[::1] x,  # IN [n]
    activation,  # a name
    float[::1] out,  # OUT [n]
    int threads,
):
    """Computes activation(x)."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    cdef int number = _activation_number(activation)
    cdef Py_ssize_t n = x.shape[0], items = (n + CHUNK - 1) // CHUNK, i
    assert n == out.shape[0] and n > 0 and threads > 0
    for i in prange(items, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        entry.activate(&x[i * CHUNK], min(CHUNK, n - i * CHUNK), number, &out[i * CHUNK])


def norm_pixels(
    str kernel_set,
    const float[:, :, ::1] x,  # IN [images, channels, pixels]
    const float[::1] weight,  # IN [channels]
    const float[::1] bias,  # IN [channels]
    float eps,
    float[:, :, ::1] out,  # OUT as x, and possibly the same memory
    int threads,
):
    """Normalises every pixel over its channels."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    cdef Py_ssize_t channels = x.shape[1], pixels = x.shape[2], tiles, items, i, image, at
    assert x.shape[0] == out.shape[0] and channels == out.shape[1] and pixels == out.shape[2] and threads > 0
    assert channels == weight.shape[0] == bias.shape[0] and x.shape[0] * channels * pixels > 0
    tiles = (pixels + SUBP_NORM_PIXELS - 1) // SUBP_NORM_PIXELS
    items = x.shape[0] * tiles
    for i in prange(items, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        image = i // tiles
        at = i % tiles * SUBP_NORM_PIXELS
        entry.norm_pixels(
            &x[image, 0, at], channels, pixels, min(SUBP_NORM_PIXELS, pixels - at), &weight[0], &bias[0], eps,
            &out[image, 0, at]
        )


def norm_runs(
    str kernel_set,
    const float[:, ::1] x,  # IN [runs, channels * pixels]
    const float[:, ::1] weight,  # IN [groups, channels]; run r has those of group r modulo groups
    const float[:, ::1] bias,  # IN as weight
    float eps,
    float[:, ::1] out,  # OUT as x, and possibly the same memory
    int threads,
):
    """Normalises every run."""
    cdef subp_kernel_set entry = subp_kernel_set_at(_set_number(kernel_set))
    cdef Py_ssize_t groups = weight.shape[0], channels = weight.shape[1], runs = x.shape[0], i
    assert runs == out.shape[0] and x.shape[1] == out.shape[1] and groups > 0 and channels > 0 and threads > 0
    assert groups == bias.shape[0] and channels == bias.shape[1] and x.shape[1] > 0 and x.shape[1] % channels == 0
    for i in prange(runs, nogil=True, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        entry.norm_run(
            &x[i, 0], channels, x.shape[1] // channels, &weight[i % groups, 0], &bias[i % groups, 0], eps, &out[i, 0]
        )
