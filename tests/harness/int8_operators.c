/* The operators on quantized integers, beside convolution: to the bit. */
#include <math.h>

#include "harness.h"

static uint8_t *bytes(ptrdiff_t count) {
    uint8_t *found = exact((size_t)count);
    for (ptrdiff_t i = 0; i < count; i++) found[i] = (uint8_t)between(0, 255);
    return found;
}

static uint8_t *bytes_of(ptrdiff_t count, uint8_t value) {
    uint8_t *found = exact((size_t)count);
    for (ptrdiff_t i = 0; i < count; i++) found[i] = value;
    return found;
}

static uint8_t *copy_of(const uint8_t *other, ptrdiff_t count) {
    uint8_t *found = exact((size_t)count);
    for (ptrdiff_t i = 0; i < count; i++) found[i] = other[i];
    return found;
}

/* clamp(rne(real) + zero, low, high). */
static int stored(float real, int zero, int low, int high) {
    const double whole = nearbyint((double)real) + zero;
    return isnan(real) || whole < low ? low : whole > high ? high : (int)whole;
}

static float positive(float most) { return most * (float)between(1, 1000) / 1000.0f; }

static void expect(const char *what, ptrdiff_t at, int got, int want) {
    if (got != want) fail("%s %td is %d; expected %d", what, at, got, want);
}

static void draw_window(subp_window *w) {
    const int usual = one_in(2); /* up to 16 pixels, and a small stride */
    ptrdiff_t *fields[2][6] = {
        {&w->height, &w->out_h, &w->kernel_h, &w->stride_h, &w->dilation_h, &w->pad_top},
        {&w->width, &w->out_w, &w->kernel_w, &w->stride_w, &w->dilation_w, &w->pad_left},
    };
    for (int d = 0; d < 2; d++) {
        ptrdiff_t kernel = *fields[d][2] = usual ? between(1, 4) : one_in(5) ? between(8, 20) : between(1, 7);
        ptrdiff_t stride = *fields[d][3] = usual ? between(1, 2) : between(1, 6);
        ptrdiff_t dilation = *fields[d][4] = !usual && one_in(3) ? between(1, 3) : 1, reach = (kernel - 1) * dilation;
        ptrdiff_t pad = *fields[d][5] = between(0, kernel), after = between(0, kernel + stride);
        ptrdiff_t size = *fields[d][0] = between(reach + 1 > pad ? reach + 1 - pad : 1, reach + 70);
        *fields[d][1] = (size + pad + after - reach - 1) / stride + 1; /* windows may hang over every edge */
    }
}

void check_quantized_pool(int set) {
    subp_quantized_pool p = {.in_zero = (int32_t)between(0, 255), .zero = (int32_t)between(0, 255)};
    subp_window *const w = &p.window;
    const int average = one_in(2);
    draw_window(w);
    describe("set %d quantized pool: %tdx%td to %tdx%td kernel %tdx%td stride %tdx%td dilation %tdx%td pad %td,%td "
             "average %d zero points %d, %d", set, w->height, w->width, w->out_h, w->out_w, w->kernel_h, w->kernel_w,
             w->stride_h, w->stride_w, w->dilation_h, w->dilation_w, w->pad_top, w->pad_left, average, p.in_zero,
             p.zero);
    const ptrdiff_t outputs = w->out_h * w->out_w;
    float *factors = exact_floats((size_t)(outputs + SUBP_FACTOR_SLACK), NAN);
    for (ptrdiff_t i = 0; i < outputs; i++) factors[i] = positive(2.0f) / (float)(w->kernel_h * w->kernel_w);
    p.factors = average ? factors : NULL;
    const uint8_t *in = bytes(w->height * w->width);
    uint8_t *out = bytes_of(outputs, 77);
    void *row = bytes_of((2 * w->width + w->out_w + SUBP_POOL_SLACK) * (ptrdiff_t)sizeof(int32_t), 99);
    choose_of(set, SUBP_OP_quantized_pool, SUBP_DTYPE_uint8)->run.quantized_pool(&p, in, out, row);
    for (ptrdiff_t at = 0; at < outputs; at++) {
        int most = 0;
        int64_t sum = 0;
        for (ptrdiff_t i = 0; i < w->kernel_h; i++)
            for (ptrdiff_t j = 0; j < w->kernel_w; j++) {
                ptrdiff_t y = at / w->out_w * w->stride_h + i * w->dilation_h - w->pad_top;
                ptrdiff_t x = at % w->out_w * w->stride_w + j * w->dilation_w - w->pad_left;
                if (y < 0 || y >= w->height || x < 0 || x >= w->width) continue;
                const int value = in[y * w->width + x];
                most = value > most ? value : most;
                sum += value - p.in_zero;
            }
        expect(average ? "average" : "maximum", at, out[at],
               average ? stored((float)sum * factors[at], p.zero, 0, 255) : most);
    }
}

static void check_conversions(int set, ptrdiff_t count) {
    const float scale = positive(0.5f), inverse = (float)(1.0 / (double)scale);
    const int zero = (int)between(0, 255);
    float *real = random_floats((size_t)count);
    for (ptrdiff_t i = 0; i < count; i++) {
        real[i] *= 200.0f * scale;
        if (one_in(4)) real[i] = ((float)between(-300, 300) + 0.5f) * scale; /* ties, or close to them */
        if (one_in(20)) real[i] = one_in(3) ? NAN : one_in(2) ? INFINITY : -INFINITY;
    }
    uint8_t *whole = bytes_of(count, 77);
    choose_of(set, SUBP_OP_quantize, SUBP_DTYPE_uint8)->run.quantize(real, count, inverse, zero, whole);
    for (ptrdiff_t i = 0; i < count; i++) expect("quantized", i, whole[i], stored(real[i] * inverse, zero, 0, 255));
    float *back = exact_floats((size_t)count, CANARY);
    choose_of(set, SUBP_OP_dequantize, SUBP_DTYPE_uint8)->run.dequantize(whole, count, zero, scale, back);
    for (ptrdiff_t i = 0; i < count; i++)
        if (back[i] != (float)(whole[i] - zero) * scale) fail("real number %td is %.9g", i, back[i]);
}

static void check_lookup(int set, ptrdiff_t count) {
    const uint8_t *in = bytes(count), *table = bytes(256);
    const float *real = random_floats(256);
    const int in_place = one_in(2);
    uint8_t *out = in_place ? copy_of(in, count) : bytes_of(count, 77);
    float *found = exact_floats((size_t)count, CANARY);
    const subp_row *row = choose_of(set, SUBP_OP_lookup, SUBP_DTYPE_uint8);
    row->run.lookup(in_place ? out : in, count, table, 0, out);
    row->run.lookup(in, count, real, 1, found);
    for (ptrdiff_t i = 0; i < count; i++) {
        expect("looked up", i, out[i], table[in[i]]);
        if (found[i] != real[in[i]]) fail("number %td looked up is %.9g; expected %.9g", i, found[i], real[in[i]]);
    }
}

void check_quantized_elements(int set) {
    const ptrdiff_t count = one_in(10) ? between(1, 5000) : between(1, 300);
    const int multiply = one_in(2), one_b = multiply && one_in(2), in_place = one_in(2);
    subp_rescale r = {(int32_t)between(0, 255), (int32_t)between(0, 255), positive(multiply ? 0.02f : 2.0f),
                      positive(2.0f), (int32_t)between(0, 255), 0, (int32_t)between(128, 255)};
    r.low = (int32_t)between(0, r.high);
    describe("set %d quantized elements: count %td multiply %d one_b %d in_place %d zeros %d, %d, %d "
             "factors %.9g, %.9g bounds %d to %d", set, count, multiply, one_b, in_place, r.a_zero, r.b_zero, r.zero,
             r.a_factor, r.b_factor, r.low, r.high);
    const uint8_t *a = bytes(count), *b = bytes(one_b ? 1 : count);
    uint8_t *out = in_place ? copy_of(a, count) : bytes_of(count, 77);
    choose_of(set, SUBP_OP_quantized_binary, SUBP_DTYPE_uint8)
        ->run.quantized_binary(multiply, &r, in_place ? out : a, b, one_b, count, out);
    int64_t total = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        const int left = a[i] - r.a_zero, right = b[one_b ? 0 : i] - r.b_zero;
        const float sum = fmaf((float)left, r.a_factor, (float)right * r.b_factor);
        expect(multiply ? "product" : "sum", i, out[i],
               stored(multiply ? (float)(left * right) * r.a_factor : sum, r.zero, r.low, r.high));
        total += left;
    }
    uint8_t mean = 77;
    r.a_factor = positive(2.0f) / (float)count;
    choose_of(set, SUBP_OP_quantized_mean, SUBP_DTYPE_uint8)->run.quantized_mean(&r, a, count, &mean);
    expect("mean of", count, mean, stored((float)total * r.a_factor, r.zero, r.low, r.high));
    check_conversions(set, count);
    check_lookup(set, count);
}
