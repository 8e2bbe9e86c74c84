# What _kernels.pyx uses of the C files in kernels/; the comments are there.

cdef extern from "kernels.h" nogil:
    ctypedef struct subp_kernel:
        const char *name
        int isa
        int32_t channels, pixels
    ctypedef struct subp_window:
        Py_ssize_t height, width, out_h, out_w
        Py_ssize_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left
    ctypedef struct subp_depthwise:
        const subp_window *window
        Py_ssize_t count, in_stride, out_stride
        const float *input "in"
        const float *padding
        const float *values
        const float *bias
        const float *residual
        float *out
        int activation
    ctypedef struct subp_depthwise_kernel:
        const char *name
        int isa
        int32_t size, stride
        void (*run)(const subp_depthwise *) noexcept nogil
    ctypedef struct subp_tiles:
        Py_ssize_t height, width, out_h, out_w, pad_top, pad_left, across, first, count, position_stride
    ctypedef struct subp_winograd_kernel:
        const char *name
        int isa
        int32_t size
    ctypedef struct subp_pool:
        subp_window window
        int average
        const float *row_counts
        const float *column_counts
    ctypedef void (*subp_halve_fn)(const float *input, Py_ssize_t in_step, Py_ssize_t rows, Py_ssize_t count, float *out,
                                   Py_ssize_t out_step) noexcept nogil
    int SUBP_TILE_SLACK
    int SUBP_ISA_COUNT
    int SUBP_ACT_COUNT
    Py_ssize_t SUBP_NORM_PIXELS


cdef extern from "omp.h" nogil:
    int omp_pause_soft
    int omp_pause_resource_all(int kind)


cdef extern from "cpu.h" nogil:
    const char *const subp_cpu_features[]
    int subp_cpu_has(const char *feature)


cdef extern from "dispatch.h" nogil:
    ctypedef struct subp_kernel_set:
        const char *name
        const char *needs
        int usable
        float (*peak)(Py_ssize_t rounds, float factor) noexcept nogil
        int peak_flops
        void (*pool)(const subp_pool *p, const float *input, float *out, float *row) noexcept nogil
        float (*mean)(const float *input, Py_ssize_t count) noexcept nogil
        void (*binary)(int multiply, const float *a, const float *b, int one_b, Py_ssize_t count, int activation,
                       float *out) noexcept nogil
        void (*norm_pixels)(const float *input, Py_ssize_t channels, Py_ssize_t stride, Py_ssize_t count,
                            const float *weight, const float *bias, float eps, float *out) noexcept nogil
        void (*norm_run)(const float *input, Py_ssize_t channels, Py_ssize_t pixels, const float *weight,
                         const float *bias, float eps, float *out) noexcept nogil
        subp_halve_fn halve
        void (*activate)(const float *input, Py_ssize_t count, int activation, float *out) noexcept nogil
    const subp_kernel subp_kernel_table[]
    const int subp_kernel_count
    subp_kernel_set subp_kernel_set_at(int isa)
    const char *subp_activation_name(int activation)
    const subp_kernel *subp_find_kernel(int isa, Py_ssize_t channels)
    const subp_depthwise_kernel subp_depthwise_table[]
    const int subp_depthwise_count
    const subp_depthwise_kernel *subp_find_depthwise(int isa, const subp_window *window)
    const subp_winograd_kernel subp_winograd_table[]
    const int subp_winograd_count
    const subp_winograd_kernel *subp_find_winograd(int isa, int32_t size)


cdef extern from "conv.h" nogil:
    int SUBP_LINE
    ctypedef struct subp_conv:
        Py_ssize_t in_channels, height, width, out_channels, out_h, out_w
        Py_ssize_t groups, rows, kept, block
        int32_t taps
        int activation
        subp_halve_fn halve
        const subp_kernel *const *kernels
        const float *values
        const int32_t *channel_offsets
        const float *bias
        Py_ssize_t copies
        const Py_ssize_t *copy_rows
        const Py_ssize_t *copy_cols
        Py_ssize_t pad_top, pad_left, stride_h, stride_w, band, plane_rows, channel_stride
        const Py_ssize_t *tap_offsets
        Py_ssize_t tile_pixels
        int pixels_outside
    ctypedef struct subp_conv_parts:
        Py_ssize_t row_step, pixel_step, parts
    ctypedef struct subp_conv_arrays:
        const float *x
        const float *residual
        float *out
    Py_ssize_t subp_conv_passes(const subp_conv *call)
    Py_ssize_t subp_conv_fills(const subp_conv *call)
    subp_conv_parts subp_conv_divide(const subp_conv *call, Py_ssize_t threads)
    void subp_conv_fill(const subp_conv *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                        float *planes)
    void subp_conv_part(const subp_conv *call, const subp_conv_arrays *arrays, Py_ssize_t pass_,
                        const subp_conv_parts *parts, Py_ssize_t part, const float *planes)
    void subp_conv_pass(const subp_conv *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, float *planes)


cdef extern from "chain.h" nogil:
    ctypedef struct subp_chain:
        subp_conv first
        subp_window window
        const subp_depthwise_kernel *kernel
        const float *values
        const float *bias
        const float *padding
        int activation
        Py_ssize_t band, pitch
    Py_ssize_t subp_chain_passes(const subp_chain *call)
    Py_ssize_t subp_chain_parts(const subp_chain *call)
    void subp_chain_fill(const subp_chain *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                         float *planes)
    void subp_chain_part(const subp_chain *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t part,
                         const float *planes, float *between)
    void subp_chain_pass(const subp_chain *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, float *planes,
                         float *between)


cdef extern from "winograd.h" nogil:
    ctypedef struct subp_winograd:
        Py_ssize_t in_channels, out_channels
        Py_ssize_t groups, rows, kept, block
        int activation
        const subp_kernel *const *kernels
        Py_ssize_t tiles_of_row
        const subp_winograd_kernel *transforms
        subp_tiles tiles
        Py_ssize_t run, call_tiles, pitch
        const float *values
        const int32_t *channel_offsets
        const float *bias
    Py_ssize_t subp_winograd_passes(const subp_winograd *call)
    Py_ssize_t subp_winograd_fills(const subp_winograd *call)
    Py_ssize_t subp_winograd_parts(const subp_winograd *call)
    Py_ssize_t subp_winograd_planes(const subp_winograd *call)
    Py_ssize_t subp_winograd_sums(const subp_winograd *call)
    void subp_winograd_fill(const subp_winograd *call, const subp_conv_arrays *arrays, Py_ssize_t pass_,
                            Py_ssize_t channel, float *planes)
    void subp_winograd_part(const subp_winograd *call, const subp_conv_arrays *arrays, Py_ssize_t pass_,
                            Py_ssize_t part, const float *planes, float *sums)
    void subp_winograd_pass(const subp_winograd *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, float *planes,
                            float *sums)
