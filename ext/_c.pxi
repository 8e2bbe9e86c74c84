# What _kernels.pyx uses of the C files in kernels/; the comments are there.

cdef extern from "kernels.h" nogil:
    ctypedef struct subp_window:
        Py_ssize_t height, width, out_h, out_w
        Py_ssize_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left
    Py_ssize_t subp_pool_row(const subp_window *w)
    ctypedef struct subp_requantize:
        int32_t zero, low, high, residual_zero
        float residual_factor
    ctypedef struct subp_depthwise:
        const subp_window *window
        Py_ssize_t count, in_stride
        const Py_ssize_t *out_offsets
        const void *input "in"
        const void *padding
        const void *values
        const float *bias
        const void *residual
        void *out
        int activation, to_float
        const subp_requantize *requantize
        const int32_t *start
        const float *factor
    ctypedef struct subp_tiles:
        Py_ssize_t height, width, out_h, out_w, pad_top, pad_left, across, first, count, position_stride
    ctypedef struct subp_pool:
        subp_window window
        int average
        const float *row_counts
        const float *column_counts
    ctypedef struct subp_interleave:
        pass
    ctypedef void (*subp_interleave_fn)(const subp_interleave *planes) noexcept nogil
    ctypedef struct subp_rescale:
        int32_t a_zero, b_zero
        float a_factor, b_factor
        int32_t zero, low, high
    ctypedef struct subp_quantized_pool:
        subp_window window
        int32_t in_zero, zero
        const float *factors
    ctypedef void (*subp_depthwise_fn)(const subp_depthwise *) noexcept nogil
    ctypedef void (*subp_pool_fn)(const subp_pool *p, const void *input, void *out, void *row) noexcept nogil
    ctypedef void (*subp_mean_fn)(const void *input, Py_ssize_t count, void *out) noexcept nogil
    ctypedef void (*subp_binary_fn)(int multiply, const void *a, const void *b, int one_b, Py_ssize_t count,
                                    int activation, void *out) noexcept nogil
    ctypedef void (*subp_activate_fn)(const void *input, Py_ssize_t count, int activation, void *out) noexcept nogil
    ctypedef void (*subp_norm_pixels_fn)(const void *input, Py_ssize_t channels, Py_ssize_t stride, Py_ssize_t count,
                                         const float *weight, const float *bias, float eps, void *out) noexcept nogil
    ctypedef void (*subp_norm_run_fn)(const void *input, Py_ssize_t channels, Py_ssize_t pixels, const float *weight,
                                      const float *bias, float eps, void *out) noexcept nogil
    ctypedef void (*subp_halve_fn)(const void *input, Py_ssize_t in_step, Py_ssize_t rows, Py_ssize_t count, void *out,
                                   Py_ssize_t out_step) noexcept nogil
    ctypedef Py_ssize_t (*subp_peak_fn)(Py_ssize_t rounds, float factor) noexcept nogil
    ctypedef void (*subp_quantize_fn)(const float *input, Py_ssize_t count, float inverse, int32_t zero,
                                      void *out) noexcept nogil
    ctypedef void (*subp_dequantize_fn)(const void *input, Py_ssize_t count, int32_t zero, float scale,
                                        float *out) noexcept nogil
    ctypedef void (*subp_lookup_fn)(const void *input, Py_ssize_t count, const void *table, int to_float,
                                    void *out) noexcept nogil
    ctypedef void (*subp_quantized_binary_fn)(int multiply, const subp_rescale *rescale, const void *a, const void *b,
                                              int one_b, Py_ssize_t count, void *out) noexcept nogil
    ctypedef void (*subp_quantized_pool_fn)(const subp_quantized_pool *p, const void *input, void *out,
                                            int32_t *row) noexcept nogil
    ctypedef void (*subp_quantized_mean_fn)(const subp_rescale *rescale, const void *input, Py_ssize_t count,
                                            void *out) noexcept nogil
    ctypedef void (*subp_cast_fn)(const void *input, Py_ssize_t count, void *out) noexcept nogil
    ctypedef struct subp_thread_state_fn:
        pass
    ctypedef void (*subp_winograd_weights_fn)(const void *values, Py_ssize_t kept, Py_ssize_t block, Py_ssize_t count,
                                              Py_ssize_t stride, float *out) noexcept nogil
    ctypedef union subp_run_functions:
        subp_interleave_fn interleave
        subp_depthwise_fn depthwise
        subp_pool_fn pool
        subp_mean_fn mean
        subp_binary_fn binary
        subp_activate_fn activate
        subp_norm_pixels_fn norm_pixels
        subp_norm_run_fn norm_run
        subp_halve_fn halve
        subp_peak_fn peak
        subp_quantize_fn quantize
        subp_dequantize_fn dequantize
        subp_lookup_fn lookup
        subp_quantized_binary_fn quantized_binary
        subp_quantized_pool_fn quantized_pool
        subp_quantized_mean_fn quantized_mean
        subp_cast_fn cast
        subp_winograd_weights_fn winograd_weights
    ctypedef struct subp_row:
        const char *name
        int op, dtype, weight_dtype, out_dtype, set
        uint64_t features
        int32_t channels, pixels, interleave
        const char *packing
        double tolerance
        int32_t size, stride
        subp_run_functions run
    int SUBP_WINOGRAD_CHANNELS, SUBP_TILE_SLACK, SUBP_WORD, SUBP_POOL_SLACK, SUBP_FACTOR_SLACK
    int SUBP_SET_COUNT, SUBP_DTYPE_COUNT, SUBP_OP_COUNT, SUBP_ACT_COUNT
    int SUBP_OP_conv2d, SUBP_OP_depthwise, SUBP_OP_winograd
    Py_ssize_t SUBP_NORM_PIXELS
    int SUBP_ONE, SUBP_ONE_FLOAT


cdef extern from "omp.h" nogil:
    int omp_pause_soft
    int omp_pause_resource_all(int kind)


cdef extern from "cpu.h" nogil:
    int SUBP_FEATURE_COUNT
    const char *const subp_feature_names[]
    uint64_t subp_cpu_known()
    uint64_t subp_cpu_features()


cdef extern from "dispatch.h" nogil:
    ctypedef struct subp_kernel_set:
        const char *name
        const char *needs
        uint64_t features
    ctypedef struct subp_dtype_traits:
        const char *name
        const char *letter
        Py_ssize_t size
    ctypedef struct subp_request:
        int op, dtype
        Py_ssize_t channels, size
        const subp_window *window
    const subp_kernel_set subp_kernel_sets[]
    const subp_dtype_traits subp_dtypes[]
    const char *const subp_operator_names[]
    const char *const subp_activation_names[]
    const subp_row subp_row_table[]
    const int subp_row_count
    int subp_row_fits(const subp_row *row, const subp_request *request)
    const subp_row *subp_choose(const subp_row *rows, int count, uint64_t features, const subp_request *request)
    subp_thread_state_fn subp_thread_state(const subp_row *kernel)


cdef extern from "conv.h" nogil:
    int SUBP_LINE
    ctypedef struct subp_conv:
        Py_ssize_t in_channels, height, width, out_channels, out_h, out_w
        Py_ssize_t groups, rows, kept, block
        int32_t taps
        int activation
        Py_ssize_t element, weight_element, out_element, packed
        uint64_t padding
        subp_halve_fn halve
        const subp_row *const *kernels
        const void *values
        const int32_t *channel_offsets
        const float *bias
        const Py_ssize_t *out_offsets
        Py_ssize_t copies
        const Py_ssize_t *copy_rows
        const Py_ssize_t *copy_cols
        Py_ssize_t pad_top, pad_left, stride_h, stride_w, band, plane_rows, channel_stride
        const Py_ssize_t *tap_offsets
        Py_ssize_t tile_pixels
        int pixels_outside
        const subp_requantize *requantize
        const int32_t *start
        const float *factor
        Py_ssize_t words, columns
        subp_interleave_fn interleave
        subp_thread_state_fn state
        int to_float
        int shared
        Py_ssize_t run_pixels, halo, word_plane
        const Py_ssize_t *word_offsets
    ctypedef struct subp_conv_parts:
        Py_ssize_t row_step, pixel_step, parts
    ctypedef struct subp_conv_arrays:
        const void *x
        const void *residual
        void *out
    Py_ssize_t subp_conv_passes(const subp_conv *call)
    Py_ssize_t subp_conv_fills(const subp_conv *call)
    subp_conv_parts subp_conv_divide(const subp_conv *call, Py_ssize_t threads)
    Py_ssize_t subp_conv_planes(const subp_conv *call)
    Py_ssize_t subp_conv_shared_words(const subp_conv *call)
    Py_ssize_t subp_conv_own_words(const subp_conv *call)
    void subp_conv_fill(const subp_conv *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, Py_ssize_t channel,
                        void *planes)
    void subp_conv_part(const subp_conv *call, const subp_conv_arrays *arrays, Py_ssize_t pass_,
                        const subp_conv_parts *parts, Py_ssize_t part, const void *planes, void *words)
    void subp_conv_pass(const subp_conv *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, void *planes,
                        void *words)


cdef extern from "fused_depthwise.h" nogil:
    ctypedef struct subp_fused_depthwise:
        subp_conv first
        subp_window window
        const subp_row *kernel
        const void *values
        const float *bias
        const Py_ssize_t *out_offsets
        const void *padding
        int activation
        const subp_requantize *requantize
        const int32_t *start
        const float *factor
        Py_ssize_t band, step, pitch
        const Py_ssize_t *between_offsets
    Py_ssize_t subp_fused_depthwise_passes(const subp_fused_depthwise *call)
    Py_ssize_t subp_fused_depthwise_parts(const subp_fused_depthwise *call)
    void subp_fused_depthwise_fill(const subp_fused_depthwise *call, const subp_conv_arrays *arrays,
                                   Py_ssize_t pass_, Py_ssize_t channel, void *planes)
    void subp_fused_depthwise_part(const subp_fused_depthwise *call, const subp_conv_arrays *arrays,
                                   Py_ssize_t pass_, Py_ssize_t part, const void *planes, void *words, void *between)
    void subp_fused_depthwise_pass(const subp_fused_depthwise *call, const subp_conv_arrays *arrays,
                                   Py_ssize_t pass_, void *planes, void *words, void *between)


cdef extern from "winograd.h" nogil:
    ctypedef struct subp_winograd:
        Py_ssize_t in_channels, out_channels
        Py_ssize_t groups, rows, kept, block
        int activation
        Py_ssize_t element, weight_element, out_element
        const subp_row *const *kernels
        Py_ssize_t tiles_of_row
        const subp_row *transforms
        const subp_row *outputs
        subp_winograd_weights_fn weights
        subp_tiles tiles
        Py_ssize_t run, call_tiles, pitch
        const void *values
        const int32_t *channel_offsets
        const float *bias
        const Py_ssize_t *out_offsets
        const Py_ssize_t *sum_offsets
    Py_ssize_t subp_winograd_passes(const subp_winograd *call)
    Py_ssize_t subp_winograd_fills(const subp_winograd *call)
    Py_ssize_t subp_winograd_parts(const subp_winograd *call)
    Py_ssize_t subp_winograd_planes(const subp_winograd *call)
    Py_ssize_t subp_winograd_sums(const subp_winograd *call)
    void subp_winograd_fill(const subp_winograd *call, const subp_conv_arrays *arrays, Py_ssize_t pass_,
                            Py_ssize_t channel, void *planes)
    void subp_winograd_part(const subp_winograd *call, const subp_conv_arrays *arrays, Py_ssize_t pass_,
                            Py_ssize_t part, const void *planes, void *sums)
    void subp_winograd_pass(const subp_winograd *call, const subp_conv_arrays *arrays, Py_ssize_t pass_, void *planes,
                            void *sums)


cdef extern from "team.h" nogil:
    int subp_team(int wanted)
    void subp_team_released()


cdef extern from "resample.h" nogil:
    ctypedef struct subp_pairs:
        const int32_t *low
        const int32_t *high
        const float *low_weight
        const float *high_weight
    ctypedef struct subp_bilinear:
        Py_ssize_t width, out_h, out_w
        subp_pairs rows, columns
        int doubles
    void subp_bilinear_plane(const subp_bilinear *call, const float *x, float *out, float *rows)
    ctypedef struct subp_gather:
        Py_ssize_t element, width, out_h, out_w
        const int32_t *rows
        const int32_t *columns
        Py_ssize_t first, last
    void subp_gather_plane(const subp_gather *call, const void *x, void *out)
    ctypedef struct subp_weave:
        Py_ssize_t element, out_h, out_w, step_h, step_w
        const void *const *sources
        const Py_ssize_t *strides
    void subp_weave_plane(const subp_weave *call, Py_ssize_t plane, void *out)
