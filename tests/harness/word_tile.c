/* One call of a bfloat16 kernel: any words, taps and run of pixels. */
#include <math.h>
#include <string.h>

#include "convolution.h"

static const enum subp_dtype dtype = SUBP_DTYPE_bfloat16;
enum { PRODUCTS = 1 << 17, HALVES = 2 }; /* of a case at most, and of a word */

static ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* Weights as the kernel wants them, from [words][taps][channels][HALVES]. */
static const void *pack_tile(const subp_row *kernel, ptrdiff_t words, ptrdiff_t taps, const char *values) {
    char *packed = exact((size_t)(words * taps * kernel->channels * SUBP_WORD));
    for (ptrdiff_t word = 0; word < words; word++)
        for (ptrdiff_t tap = 0; tap < taps; tap++)
            for (ptrdiff_t c = 0; c < kernel->channels; c++, values += SUBP_WORD)
                memcpy(packed + word_place(kernel, words, taps, word, tap, c) * SUBP_WORD, values, SUBP_WORD);
    return packed;
}

/* Random numbers where the kernel reads pixels that count, NaN elsewhere: it may load those, and has to ignore them. */
static void *random_words(const subp_tile *t, ptrdiff_t size) {
    void *x = exact_elements(dtype, (size_t)(size * HALVES), NAN);
    for (ptrdiff_t word = 0; word < t->words; word++)
        for (int32_t tap = 0; tap < t->taps; tap++)
            for (ptrdiff_t i = 0; i < t->count * HALVES; i++)
                set_element(dtype, x, (word * t->word_stride + t->tap_offsets[tap]) * HALVES + i, normal_like());
    return x;
}

void check_word_tile(const subp_row *kernel) {
    const int32_t channels = one_in(2) ? kernel->channels : (int32_t)between(1, kernel->channels);
    const ptrdiff_t words = one_in(3) ? 16 * between(1, 4) : between(1, one_in(2) ? 70 : 15);
    const ptrdiff_t room = PRODUCTS / (words * HALVES * kernel->channels);
    const int32_t taps = one_in(2) ? 1 : (int32_t)between(1, least(25, room));
    const ptrdiff_t count = least(one_in(3) ? kernel->pixels : between(1, 3 * kernel->pixels), 1 + room / taps);
    const ptrdiff_t out_stride = count + (one_in(3) ? 0 : between(0, 70));
    const ptrdiff_t outputs = (channels - 1) * out_stride + count;
    subp_tile tile = {
        .taps = taps, .words = (int32_t)words, .count = count, .channels = channels,
        .activation = one_in(2) ? SUBP_ACT_none : (int)between(1, SUBP_ACT_COUNT - 1), .to_float = one_in(3),
        .out_offsets = random_places(1, channels, out_stride),
    };
    ptrdiff_t *offsets = exact(sizeof(ptrdiff_t) * (size_t)taps), reach = 0;
    for (int32_t tap = 0; tap < taps; tap++) {
        offsets[tap] = between(0, 40);
        reach = offsets[tap] > reach ? offsets[tap] : reach;
    }
    tile.tap_offsets = offsets;
    tile.word_stride = reach + count + between(0, 20);
    const int has_bias = !one_in(3), has_residual = !tile.to_float && one_in(2);
    describe("%s: words %td taps %d count %td channels %d word_stride %td out_stride %td activation %s bias %d "
             "residual %d to_float %d", kernel->name, words, taps, count, channels, tile.word_stride, out_stride,
             subp_activation_names[tile.activation], has_bias, has_residual, tile.to_float);

    const enum subp_dtype of_out = tile.to_float ? SUBP_DTYPE_float32 : dtype;
    const void *values = random_elements(dtype, (size_t)(words * taps * kernel->channels * HALVES));
    tile.values = pack_tile(kernel, words, taps, values);
    tile.x = random_words(&tile, (words - 1) * tile.word_stride + reach + count + SUBP_TILE_SLACK);
    tile.bias = has_bias ? random_floats((size_t)channels) : NULL;
    tile.residual = has_residual ? random_elements(dtype, (size_t)outputs) : NULL;
    tile.out = exact_elements(of_out, (size_t)outputs, CANARY);
    const double canary = element(of_out, tile.out, 0); /* as the type holds it */
    const subp_thread_state_fn state = subp_thread_state(kernel);
    if (state.begin) state.begin(tile.words);
    kernel->run.conv2d(&tile);
    if (state.end) state.end();

    for (ptrdiff_t at = 0; at < outputs; at++) {
        const ptrdiff_t i = at % out_stride, c = place_at(tile.out_offsets, at - i);
        const double got = element(of_out, tile.out, at);
        if (i >= count) {
            if (got != canary) fail("output %td, between two channels, was written: %g", at, got);
            continue;
        }
        sum s = {0, 0};
        for (ptrdiff_t word = 0; word < words; word++)
            for (int32_t tap = 0; tap < taps; tap++)
                for (int h = 0; h < HALVES; h++)
                    add_product(&s, element(dtype, values, ((word * taps + tap) * kernel->channels + c) * HALVES + h),
                                element(dtype, tile.x, (word * tile.word_stride + offsets[tap] + i) * HALVES + h));
        if (tile.bias) add_term(&s, tile.bias[c]);
        if (tile.residual) add_term(&s, element(dtype, tile.residual, at));
        check_rounded("output", at, got, s, words * taps * HALVES, tile.activation, kernel->tolerance,
                      tile.to_float ? 0 : 1.0 / 256);
    }
}
