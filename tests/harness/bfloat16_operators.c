/* The operators of bfloat16 beside convolution: what is stored is the result in double precision, rounded, up to what
 * the arithmetic in float32 adds. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

static const enum subp_dtype type = SUBP_DTYPE_bfloat16;

static double get(const void *array, ptrdiff_t i) { return element(type, array, i); }

/* Half of the last of 8 bits, and `terms` roundings of float32. */
static void expect(const char *what, ptrdiff_t at, double got, double want, double size, ptrdiff_t terms) {
    const double bound = fabs(want) / 256 + FLT_EPSILON * (double)(terms + 16) * (size + fabs(want)) + 1e-40;
    if (isnan(want) ? !isnan(got) : got != want && !(fabs(got - want) <= bound))
        fail("%s %td is %.9g; expected %.9g within %.3g", what, at, got, want, bound);
}

static void *with_nan(ptrdiff_t count, double scale) {
    void *array = random_elements(type, (size_t)count);
    for (ptrdiff_t i = 0; i < count; i++) set_element(type, array, i, get(array, i) * scale);
    if (one_in(8)) ((uint16_t *)array)[between(0, count - 1)] = one_in(2) ? 0x7fc1 : 0xffc1;
    if (one_in(8)) ((uint16_t *)array)[between(0, count - 1)] = one_in(2) ? 0x7f80 : 0xff80;
    return array;
}

static void random_windows(subp_window *w) {
    const ptrdiff_t usual = one_in(2) ? between(2, 3) : 0; /* a square window with stride 2 */
    ptrdiff_t *fields[2][6] = {
        {&w->height, &w->out_h, &w->kernel_h, &w->stride_h, &w->dilation_h, &w->pad_top},
        {&w->width, &w->out_w, &w->kernel_w, &w->stride_w, &w->dilation_w, &w->pad_left},
    };
    for (int d = 0; d < 2; d++) {
        const ptrdiff_t kernel = *fields[d][2] = usual ? usual : between(1, 7);
        const ptrdiff_t stride = *fields[d][3] = usual ? 2 : between(1, 4);
        const ptrdiff_t dilation = *fields[d][4] = !usual && one_in(3) ? between(1, 3) : 1;
        const ptrdiff_t reach = (kernel - 1) * dilation;
        const ptrdiff_t pad = *fields[d][5] = between(0, kernel), after = between(0, kernel + stride);
        const ptrdiff_t size = *fields[d][0] = between(reach + 1 > pad ? reach + 1 - pad : 1, reach + 70);
        *fields[d][1] = (size + pad + after - reach - 1) / stride + 1; /* windows may hang over every edge */
    }
}

void check_bfloat16_pool(int set) {
    subp_pool p = {.average = one_in(2)};
    subp_window *const w = &p.window;
    random_windows(w);
    describe("set %d bf16 pool: %tdx%td to %tdx%td kernel %tdx%td stride %tdx%td dilation %tdx%td pad %td,%td "
             "average %d",
             set, w->height, w->width, w->out_h, w->out_w, w->kernel_h, w->kernel_w, w->stride_h, w->stride_w,
             w->dilation_h, w->dilation_w, w->pad_top, w->pad_left, p.average);
    float *row_counts = random_floats((size_t)w->out_h), *column_counts = random_floats((size_t)w->out_w);
    for (ptrdiff_t i = 0; i < w->out_h; i++) row_counts[i] = (float)between(1, 7);
    for (ptrdiff_t i = 0; i < w->out_w; i++) column_counts[i] = (float)between(1, 7);
    p.row_counts = p.average ? row_counts : NULL;
    p.column_counts = p.average ? column_counts : NULL;
    const void *in = with_nan(w->height * w->width, 1);
    void *out = exact_elements(type, (size_t)(w->out_h * w->out_w), CANARY);
    choose_of(set, SUBP_OP_pool, type)->run.pool(&p, in, out, exact_floats((size_t)subp_pool_row(w), NAN));
    for (ptrdiff_t at = 0; at < w->out_h * w->out_w; at++) {
        double most = -INFINITY, total = 0, size = 0;
        for (ptrdiff_t i = 0; i < w->kernel_h; i++)
            for (ptrdiff_t j = 0; j < w->kernel_w; j++) {
                const ptrdiff_t y = at / w->out_w * w->stride_h + i * w->dilation_h - w->pad_top;
                const ptrdiff_t x = at % w->out_w * w->stride_w + j * w->dilation_w - w->pad_left;
                if (y < 0 || y >= w->height || x < 0 || x >= w->width) continue;
                const double value = get(in, y * w->width + x);
                if (isnan(value) || value > most) most = isnan(most) ? most : value;
                total += value;
                size += fabs(value);
            }
        const double divisor = p.average ? (double)row_counts[at / w->out_w] * column_counts[at % w->out_w] : 1;
        if (p.average)
            expect("average", at, get(out, at), total / divisor, size / divisor, w->kernel_h * w->kernel_w);
        else if (isnan(most) ? !isnan(get(out, at)) : get(out, at) != most)
            fail("maximum %td is %.9g; expected %.9g", at, get(out, at), most);
    }
}

static void check_casts(int set, ptrdiff_t count) {
    float *real = random_floats((size_t)count);
    for (ptrdiff_t i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)between(0, 0xffffffff);
        memcpy(&real[i], &bits, sizeof(bits));
    }
    void *low = exact_elements(type, (size_t)count, CANARY);
    float *back = exact_floats((size_t)count, CANARY);
    choose_of(set, SUBP_OP_cast, SUBP_DTYPE_float32)->run.cast(real, count, low);
    choose_of(set, SUBP_OP_cast, type)->run.cast(low, count, back);
    for (ptrdiff_t i = 0; i < count; i++) {
        uint32_t bits, kept;
        memcpy(&bits, &real[i], sizeof(bits));
        memcpy(&kept, &back[i], sizeof(kept));
        if (isnan(real[i]) ? !isnan(back[i]) : kept & 0xffff || labs((long)kept - (long)bits) > 0x8000)
            fail("number %td is %#x; expected the nearest to %#x", i, kept, bits);
        if (!isnan(real[i]) && (bits & 0xffff) == 0x8000 && kept & 0x10000) fail("tie %td went to odd %#x", i, kept);
    }
}

void check_bfloat16_elements(int set) {
    const ptrdiff_t count = one_in(10) ? between(1, 5000) : between(1, 100);
    const int multiply = one_in(2), one_b = one_in(2) ? 0 : one_in(2) ? SUBP_ONE : SUBP_ONE_FLOAT;
    const int activation = one_in(3) ? 0 : (int)between(1, SUBP_ACT_COUNT - 1), in_place = one_in(2);
    const float scale = one_in(2) ? 1.0f : (float)between(1, 60); /* up to where activations saturate */
    describe("set %d bf16 elements: count %td multiply %d one_b %d activation %s in_place %d scale %g", set, count,
             multiply, one_b, subp_activation_names[activation], in_place, scale);
    const void *a = with_nan(count, scale);
    const void *b = one_b == SUBP_ONE_FLOAT ? random_floats(1) : random_elements(type, one_b ? 1 : (size_t)count);
    void *out = exact_elements(type, (size_t)count, CANARY);
    if (in_place) memcpy(out, a, (size_t)count * sizeof(uint16_t));
    choose_of(set, SUBP_OP_binary, type)->run.binary(multiply, in_place ? out : a, b, one_b, count, activation, out);
    for (ptrdiff_t i = 0; i < count; i++) {
        const double x = get(a, i), y = one_b == SUBP_ONE_FLOAT ? *(const float *)b : get(b, one_b ? 0 : i);
        const double exact = multiply ? x * y : x + y;
        if (isinf(x)) continue; /* what becomes of infinity is the activation's own affair */
        expect("element", i, get(out, i), activation ? activation_oracle(activation, exact) : exact,
               multiply ? fabs(exact) : fabs(x) + fabs(y), 1);
    }
    choose_of(set, SUBP_OP_activate, type)->run.activate(a, count, activation, out);
    double total = 0, size = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        const double x = get(a, i);
        const double want = activation ? activation_oracle(activation, x) : x;
        if (!isinf(x)) expect("activated", i, get(out, i), want, fabs(x), 1);
        total += x;
        size += fabs(x);
    }
    uint16_t mean = 0;
    choose_of(set, SUBP_OP_mean, type)->run.mean(a, count, &mean);
    expect("mean of", count, get(&mean, 0), total / (double)count, size / (double)count, count);
    check_casts(set, count);
}

void check_bfloat16_norm(int set) {
    const ptrdiff_t channels = between(1, 70), pixels = one_in(3) ? SUBP_NORM_PIXELS : between(1, SUBP_NORM_PIXELS);
    const ptrdiff_t stride = pixels + (one_in(2) ? between(0, 40) : 0), inputs = (channels - 1) * stride + pixels;
    const float eps = one_in(2) ? 1e-2f : 1e-5f;
    describe("set %d bf16 norm: channels %td pixels %td stride %td eps %g", set, channels, pixels, stride, eps);
    const void *in = random_elements(type, (size_t)inputs);
    const float *weight = random_floats((size_t)channels), *bias = random_floats((size_t)channels);
    void *out = exact_elements(type, (size_t)inputs, CANARY);
    choose_of(set, SUBP_OP_norm_pixels, type)->run.norm_pixels(in, channels, stride, pixels, weight, bias, eps, out);
    const uint16_t canary = subp_to_bfloat16(CANARY);
    for (ptrdiff_t at = 0; at < inputs; at++) {
        const ptrdiff_t c = at / stride, x = at % stride;
        if (x >= pixels) {
            if (((uint16_t *)out)[at] != canary) fail("output %td between the channels is %g", at, get(out, at));
            continue;
        }
        double mean = 0, variance = 0, most = 0;
        for (ptrdiff_t k = 0; k < channels; k++) mean += get(in, k * stride + x) / (double)channels;
        for (ptrdiff_t k = 0; k < channels; k++) {
            const double d = get(in, k * stride + x) - mean;
            variance += d * d / (double)channels;
            most = fmax(most, fabs(get(in, k * stride + x)));
        }
        const double factor = weight[c] / sqrt(variance + eps);
        expect("normalised", at, get(out, at), (get(in, at) - mean) * factor + bias[c],
               2 * most * fabs(factor) + fabs((double)bias[c]), channels);
    }
}
