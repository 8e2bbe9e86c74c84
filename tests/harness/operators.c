/* The operators beside convolution. */
#include <float.h>
#include <math.h>

#include "harness.h"

void check_pool(int set) {
    subp_pool p = {.average = one_in(2)};
    subp_window *const w = &p.window;
    const ptrdiff_t usual = one_in(2) ? between(2, 3) : 0; /* a square window with stride 2 */
    ptrdiff_t *fields[2][6] = {
        {&w->height, &w->out_h, &w->kernel_h, &w->stride_h, &w->dilation_h, &w->pad_top},
        {&w->width, &w->out_w, &w->kernel_w, &w->stride_w, &w->dilation_w, &w->pad_left},
    };
    for (int d = 0; d < 2; d++) {
        ptrdiff_t kernel = *fields[d][2] = usual ? usual : between(1, 7);
        ptrdiff_t stride = *fields[d][3] = usual ? 2 : between(1, 4);
        ptrdiff_t dilation = *fields[d][4] = !usual && one_in(3) ? between(1, 3) : 1, reach = (kernel - 1) * dilation;
        ptrdiff_t pad = *fields[d][5] = between(0, kernel), after = between(0, kernel + stride);
        ptrdiff_t size = *fields[d][0] = between(reach + 1 > pad ? reach + 1 - pad : 1, reach + 40);
        *fields[d][1] = (size + pad + after - reach - 1) / stride + 1; /* windows may hang over every edge */
    }
    describe("set %d pool: %tdx%td to %tdx%td kernel %tdx%td stride %tdx%td dilation %tdx%td pad %td,%td average %d",
             set, w->height, w->width, w->out_h, w->out_w, w->kernel_h, w->kernel_w, w->stride_h, w->stride_w,
             w->dilation_h, w->dilation_w, w->pad_top, w->pad_left, p.average);
    float *row_counts = random_floats((size_t)w->out_h), *column_counts = random_floats((size_t)w->out_w);
    for (ptrdiff_t i = 0; i < w->out_h; i++) row_counts[i] = (float)between(1, 7);
    for (ptrdiff_t i = 0; i < w->out_w; i++) column_counts[i] = (float)between(1, 7);
    p.row_counts = p.average ? row_counts : NULL;
    p.column_counts = p.average ? column_counts : NULL;
    float *in = random_floats((size_t)(w->height * w->width)), *row = exact_floats((size_t)w->width, NAN);
    if (one_in(10)) in[between(0, w->height * w->width - 1)] = NAN;
    float *out = exact_floats((size_t)(w->out_h * w->out_w), CANARY);
    choose(set, SUBP_OP_pool, 0)->run.pool(&p, in, out, row);
    for (ptrdiff_t at = 0; at < w->out_h * w->out_w; at++) {
        const ptrdiff_t y = at / w->out_w, x = at % w->out_w;
        double most = -INFINITY;
        sum s = {0, 0};
        for (ptrdiff_t i = 0; i < w->kernel_h; i++)
            for (ptrdiff_t j = 0; j < w->kernel_w; j++) {
                ptrdiff_t from_y = y * w->stride_h + i * w->dilation_h - w->pad_top;
                ptrdiff_t from_x = x * w->stride_w + j * w->dilation_w - w->pad_left;
                if (from_y < 0 || from_y >= w->height || from_x < 0 || from_x >= w->width) continue;
                float value = in[from_y * w->width + from_x];
                if (isnan(value) || value > most) most = isnan(most) ? most : value;
                add_term(&s, value);
            }
        if (p.average) {
            double divisor = (double)row_counts[y] * column_counts[x];
            s.value /= divisor;
            s.size /= divisor;
            check_sum("average", at, out[at], s, w->kernel_h * w->kernel_w, SUBP_ACT_none, 1.0);
        } else if (isnan(most) ? !isnan(out[at]) : out[at] != most) {
            fail("maximum %td is %.9g; expected %.9g", at, out[at], most);
        }
    }
}

void check_elements(int set) {
    const ptrdiff_t count = one_in(10) ? between(1, 5000) : between(1, 100);
    const int multiply = one_in(2), one_b = one_in(2), activation = one_in(3) ? 0 : (int)between(1, SUBP_ACT_COUNT - 1);
    const float scale = one_in(2) ? 1.0f : (float)between(1, 60); /* up to where activations saturate */
    describe("set %d elements: count %td multiply %d one_b %d activation %s scale %g", set, count, multiply, one_b,
             subp_activation_names[activation], scale);
    float *a = random_floats((size_t)count), *b = random_floats(one_b ? 1 : (size_t)count);
    for (ptrdiff_t i = 0; i < count; i++) a[i] *= scale;
    if (one_in(10)) a[between(0, count - 1)] = NAN;
    float *out = exact_floats((size_t)count, CANARY);

    choose(set, SUBP_OP_binary, 0)->run.binary(multiply, a, b, one_b, count, activation, out);
    for (ptrdiff_t i = 0; i < count; i++) {
        sum s = {0, 0};
        if (multiply)
            add_product(&s, a[i], b[one_b ? 0 : i]);
        else
            add_term(&s, a[i]), add_term(&s, b[one_b ? 0 : i]);
        check_sum("element", i, out[i], s, 1, activation, 1.0);
    }
    choose(set, SUBP_OP_activate, 0)->run.activate(a, count, activation, out);
    sum total = {0, 0};
    for (ptrdiff_t i = 0; i < count; i++) {
        check_sum("activated", i, out[i], (sum){a[i], 0}, 0, activation, 1.0);
        add_term(&total, a[i]);
    }
    total.value /= (double)count;
    total.size /= (double)count;
    float mean = CANARY;
    choose(set, SUBP_OP_mean, 0)->run.mean(a, count, &mean);
    check_sum("mean of", count, mean, total, count, SUBP_ACT_none, 1.0);
}

/* One normalised number. */
static void check_normalised(ptrdiff_t at, float got, const float *in, ptrdiff_t own, ptrdiff_t step, ptrdiff_t count,
                             double weight, double bias, double eps) {
    double mean = 0, variance = 0, most = 0;
    for (ptrdiff_t i = 0; i < count; i++) mean += in[i * step], most = fmax(most, fabs(in[i * step]));
    mean /= (double)count;
    for (ptrdiff_t i = 0; i < count; i++) variance += (in[i * step] - mean) * (in[i * step] - mean);
    const double scale = 1 / sqrt(variance / (double)count + eps);
    const double want = (in[own * step] - mean) * scale * weight + bias;
    const double bound = FLT_EPSILON * (double)(count + 16) * (2 * most * scale * fabs(weight) + fabs(bias));
    if (!(fabs(got - want) <= bound)) fail("normalised %td is %.9g; expected %.9g within %.3g", at, got, want, bound);
}

void check_norm(int set) {
    const ptrdiff_t channels = between(1, 70), pixels = one_in(3) ? 1 : between(1, SUBP_NORM_PIXELS);
    const ptrdiff_t stride = pixels + (one_in(2) ? between(0, 40) : 0), inputs = (channels - 1) * stride + pixels;
    const float eps = one_in(2) ? 1e-2f : 1e-5f;
    describe("set %d norm: channels %td pixels %td stride %td eps %g", set, channels, pixels, stride, eps);
    const float *in = random_floats((size_t)inputs);
    const float *weight = random_floats((size_t)channels), *bias = random_floats((size_t)channels);
    float *out = exact_floats((size_t)inputs, CANARY);
    choose(set, SUBP_OP_norm_pixels, 0)->run.norm_pixels(in, channels, stride, pixels, weight, bias, eps, out);
    for (ptrdiff_t at = 0; at < inputs; at++) {
        const ptrdiff_t c = at / stride, x = at % stride;
        if (x < pixels)
            check_normalised(at, out[at], in + x, c, stride, channels, weight[c], bias[c], eps);
        else if (out[at] != CANARY)
            fail("output %td between the channels is %g", at, out[at]);
    }
    const ptrdiff_t numbers = channels * pixels;
    in = random_floats((size_t)numbers);
    out = exact_floats((size_t)numbers, CANARY);
    choose(set, SUBP_OP_norm_run, 0)->run.norm_run(in, channels, pixels, weight, bias, eps, out);
    for (ptrdiff_t at = 0; at < numbers; at++)
        check_normalised(at, out[at], in, at, 1, numbers, weight[at / pixels], bias[at / pixels], eps);
}

static void check_halves(int set, enum subp_dtype dtype) {
    const ptrdiff_t rows = between(1, 4), count = between(1, 70), in_step = 2 * count - 1 + between(0, 40);
    const ptrdiff_t out_step = count + between(0, 20), inputs = (rows - 1) * in_step + 2 * count - 1;
    const ptrdiff_t outputs = (rows - 1) * out_step + count;
    const subp_row *kernel = choose_of(set, SUBP_OP_halve, dtype);
    describe("set %d %s: rows %td count %td in_step %td out_step %td", set, kernel->name, rows, count, in_step,
             out_step);
    const void *in = random_elements(dtype, (size_t)inputs), *canary = exact_elements(dtype, 1, CANARY);
    void *out = exact_elements(dtype, (size_t)outputs, CANARY);
    kernel->run.halve(in, in_step, rows, count, out, out_step);
    for (ptrdiff_t at = 0; at < outputs; at++) {
        const ptrdiff_t y = at / out_step, x = at % out_step;
        const double got = element(dtype, out, at);
        const double want = x < count ? element(dtype, in, y * in_step + 2 * x) : element(dtype, canary, 0);
        if (got != want) fail("output %td is %g; expected %g", at, got, want);
    }
}

void check_halve(int set) { check_halves(set, SUBP_DTYPE_float32); }

void check_bfloat16_halve(int set) { check_halves(set, SUBP_DTYPE_bfloat16); }
