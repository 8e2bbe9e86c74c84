#include "dispatch.h"

#define SUBP_SET(name, needs, features) {#name, needs, features},
const subp_kernel_set subp_kernel_sets[SUBP_SET_COUNT] = {
#include "sets.inc"
};

#define SUBP_DTYPE(name, type, letter, to_double, from_double) {#name, letter, sizeof(type)},
const subp_dtype_traits subp_dtypes[SUBP_DTYPE_COUNT] = {
#include "dtypes.inc"
};

#define SUBP_OPERATOR(name) #name,
const char *const subp_operator_names[SUBP_OP_COUNT] = {SUBP_OPERATORS(SUBP_OPERATOR)};

#define SUBP_ACTIVATION(name) #name,
const char *const subp_activation_names[SUBP_ACT_COUNT] = {"none", SUBP_ACTIVATIONS(SUBP_ACTIVATION)};

#define SUBP_SET(name, needs, features) FEATURES_OF_##name = features,
enum { /* of each set */
#include "sets.inc"
};

/* A row's function, or functions, from its name. */
#define RUN_conv2d(name) name
#define RUN_interleave(name) name
#define RUN_depthwise(name) name
#define RUN_winograd(name) {name##_in, name##_out}
#define RUN_pool(name) name
#define RUN_mean(name) name
#define RUN_binary(name) name
#define RUN_activate(name) name
#define RUN_norm_pixels(name) name
#define RUN_norm_run(name) name
#define RUN_halve(name) name
#define RUN_peak(name) name
#define RUN_quantize(name) name
#define RUN_dequantize(name) name
#define RUN_lookup(name) name
#define RUN_quantized_binary(name) name
#define RUN_quantized_pool(name) name
#define RUN_quantized_mean(name) name
#define RUN_cast(name) name
#define RUN_thread_state(name) {name##_begin, name##_end}
#define RUN_winograd_weights(name) name

#define SUBP_ROW(operator, own_name, type, weights, outputs, own_set, tile_channels, tile_pixels, interleaved, packed, \
                 bound, window_size, window_stride)                                                                  \
    {.name = #own_name,                                                                                              \
     .op = SUBP_OP_##operator,                                                                                       \
     .dtype = SUBP_DTYPE_##type,                                                                                     \
     .weight_dtype = SUBP_DTYPE_##weights,                                                                           \
     .out_dtype = SUBP_DTYPE_##outputs,                                                                              \
     .set = SUBP_SET_##own_set,                                                                                      \
     .features = FEATURES_OF_##own_set,                                                                              \
     .channels = tile_channels,                                                                                      \
     .pixels = tile_pixels,                                                                                          \
     .interleave = interleaved,                                                                                      \
     .packing = packed,                                                                                              \
     .tolerance = bound,                                                                                             \
     .size = window_size,                                                                                            \
     .stride = window_stride,                                                                                        \
     .run = {.operator = RUN_##operator(own_name)}},
const subp_row subp_row_table[] = {
#include "dtypes.inc"
};

const int subp_row_count = sizeof(subp_row_table) / sizeof(subp_row_table[0]);

static int fits_window(const subp_row *row, const subp_window *w) {
    return !row->size || (w->kernel_h == row->size && w->kernel_w == row->size && w->stride_h == row->stride &&
                          w->stride_w == row->stride && w->dilation_h == 1 && w->dilation_w == 1);
}

int subp_row_fits(const subp_row *row, const subp_request *request) {
    if (row->op != request->op || row->dtype != request->dtype) return 0;
    switch (row->op) {
    case SUBP_OP_conv2d:
        return row->channels <= request->channels;
    case SUBP_OP_depthwise:
        return fits_window(row, request->window);
    case SUBP_OP_winograd:
    case SUBP_OP_winograd_weights:
        return row->size == request->size;
    default:
        return 1;
    }
}

const subp_row *subp_choose(const subp_row *rows, int count, uint64_t features, const subp_request *request) {
    for (int i = count - 1; i >= 0; i--)
        if (!(rows[i].features & ~features) && subp_row_fits(&rows[i], request)) return &rows[i];
    return NULL;
}

subp_thread_state_fn subp_thread_state(const subp_row *kernel) {
    for (int i = 0; i < subp_row_count; i++)
        if (subp_row_table[i].op == SUBP_OP_thread_state && subp_row_table[i].set == kernel->set &&
            subp_row_table[i].dtype == kernel->dtype)
            return subp_row_table[i].run.thread_state;
    return (subp_thread_state_fn){NULL, NULL};
}
