/* One call of a kernel: any offsets of channels and taps, any run of pixels. */
#include <math.h>
#include <string.h>

#include "harness.h"

static ptrdiff_t random_count(int32_t pixels) {
    switch (between(0, 4)) {
    case 0: return between(1, 5);
    case 1: return pixels * between(1, 3) + between(0, 1); /* whole tiles, and one pixel more */
    case 2: return between(1, pixels);
    default: return between(1, 4 * pixels);
    }
}

static int32_t random_taps(void) {
    static const int32_t usual[] = {1, 1, 1, 9, 9, 25};
    return one_in(4) ? (int32_t)between(1, 49) : usual[between(0, 5)];
}

/* Offsets that reach [0, reach], 0 among them. */
static void random_offsets(ptrdiff_t *offsets, ptrdiff_t count, ptrdiff_t reach) {
    ptrdiff_t least = reach;
    for (ptrdiff_t i = 0; i < count; i++) {
        offsets[i] = between(0, reach);
        least = offsets[i] < least ? offsets[i] : least;
    }
    for (ptrdiff_t i = 0; i < count; i++) offsets[i] -= least;
}

void check_tile(int set, const subp_row *kernel) {
    const ptrdiff_t count = random_count(kernel->pixels), width = kernel->channels;
    const int32_t taps = random_taps(), kept = (int32_t)between(1, one_in(3) ? 4 : 33);
    const int32_t channels = one_in(2) ? kernel->channels : (int32_t)between(1, width);
    const ptrdiff_t out_stride = count + (one_in(3) ? 0 : between(0, 70));
    const ptrdiff_t outputs = (channels - 1) * out_stride + count;
    const ptrdiff_t *places = random_places(1, channels, out_stride);
    const int activation = one_in(2) ? SUBP_ACT_none : (int)between(1, SUBP_ACT_COUNT - 1);
    const int has_bias = !one_in(3), has_residual = one_in(2), in_place = has_residual && one_in(3);
    const int has_nan = one_in(20);
    describe("set %d %s: count %td taps %d kept %d channels %d out_stride %td activation %s bias %d residual %d "
             "in place %d",
             set, kernel->name, count, taps, kept, channels, out_stride, subp_activation_names[activation], has_bias,
             has_residual, in_place);

    ptrdiff_t *tap_offsets = exact(sizeof(ptrdiff_t) * (size_t)taps), *far = exact(sizeof(ptrdiff_t) * (size_t)kept);
    int32_t *channel_offsets = exact(sizeof(int32_t) * (size_t)kept);
    random_offsets(tap_offsets, taps, between(0, 2 * count + 40));
    random_offsets(far, kept, between(0, kept * (count + 60)));
    for (int32_t k = 0; k < kept; k++) channel_offsets[k] = (int32_t)far[k];

    ptrdiff_t size = 0;
    for (int32_t k = 0; k < kept; k++)
        for (int32_t t = 0; t < taps; t++) {
            ptrdiff_t end = channel_offsets[k] + tap_offsets[t] + count;
            size = end > size ? end : size;
        }
    void *x = exact_elements(kernel->dtype, (size_t)size, NAN);
    for (int32_t k = 0; k < kept; k++)
        for (int32_t t = 0; t < taps; t++)
            for (ptrdiff_t i = 0; i < count; i++) {
                const ptrdiff_t to = channel_offsets[k] + tap_offsets[t] + i;
                if (isnan(element(kernel->dtype, x, to))) set_element(kernel->dtype, x, to, normal_like());
            }
    if (has_nan) {
        const ptrdiff_t channel = channel_offsets[between(0, kept - 1)];
        set_element(kernel->dtype, x, channel + tap_offsets[0] + between(0, count - 1), NAN);
    }

    const void *values = random_elements(kernel->weight_dtype, (size_t)kept * (size_t)taps * (size_t)width);
    const float *bias = has_bias ? random_floats((size_t)channels) : NULL;
    void *out = exact_elements(kernel->out_dtype, (size_t)outputs, CANARY), *residual = NULL;
    const double canary = element(kernel->out_dtype, out, 0); /* as the type holds it */
    if (has_residual) {
        residual = exact_elements(kernel->out_dtype, (size_t)outputs, NAN);
        for (ptrdiff_t c = 0; c < channels; c++)
            for (ptrdiff_t i = 0; i < count; i++) {
                const double value = normal_like();
                set_element(kernel->out_dtype, residual, places[c] + i, value);
                if (in_place) set_element(kernel->out_dtype, out, places[c] + i, value);
            }
    }

    subp_tile tile = {
        .x = x, .tap_offsets = tap_offsets, .taps = taps, .channel_offsets = channel_offsets, .kept = kept,
        .values = values, .bias = bias, .residual = in_place ? out : residual, .out = out, .out_offsets = places,
        .count = count, .ahead = one_in(3) ? count : 0, .channels = channels, .activation = activation,
    };
    if (strcmp(kernel->packing, "tiles")) fail("packing %s has no oracle: add it here", kernel->packing);
    kernel->run.conv2d(&tile);

    for (ptrdiff_t c = 0; c < channels; c++)
        for (ptrdiff_t i = 0; i < out_stride && places[c] + i < outputs; i++) {
            ptrdiff_t at = places[c] + i;
            if (i >= count) {
                const double found = element(kernel->out_dtype, out, at);
                if (found != canary) fail("output %td, between two channels, was written: %g", at, found);
                continue;
            }
            sum s = {0, 0};
            for (ptrdiff_t k = 0; k < kept; k++)
                for (ptrdiff_t t = 0; t < taps; t++)
                    add_product(&s, element(kernel->weight_dtype, values, (k * taps + t) * width + c),
                                element(kernel->dtype, x, channel_offsets[k] + tap_offsets[t] + i));
            if (bias) add_term(&s, bias[c]);
            if (residual) add_term(&s, element(kernel->out_dtype, residual, at));
            check_sum("output", at, element(kernel->out_dtype, out, at), s, kept * taps, activation, kernel->tolerance);
        }
}
