/* The bfloat16 kernel for AMX: 16 output channels x 64 pixels of sums are four tile registers.
 *
 * The words of kept channels are a register's rows as they are: 16 words of 16 pixels, from `word_stride` pixels to the
 * next, and of any tap. Weights come packed as the other operand, 16 channels with 16 words each. What remains of the
 * words has registers of its own, with as many rows: nothing is read behind the last word, and nothing multiplied that
 * could turn an infinite number into none. Sums pass through memory to the store of the other kernels. */
#include "bf16_simd_avx512bf16.h"
#include "tile_registers.h"

/* What bf16_ubsconv_16x64 computes at once. */
enum { REGISTER_CHANNELS = 16, REGISTER_WORDS = 16, REGISTER_PIXELS = 16, STRIPS = 4 };
enum { STRIP_BYTES = REGISTER_PIXELS * SUBP_WORD, RUN = STRIPS * REGISTER_PIXELS };

/* Registers 0 to 3 are sums. */
#define WEIGHTS 4
#define WORDS 5
#define LAST_WEIGHTS 6
#define LAST_WORDS 7

static void shape_register(tile_config *config, int n, int rows, int row_bytes) {
    config->rows[n] = (uint8_t)rows;
    config->row_bytes[n] = (uint16_t)row_bytes;
}

void bf16_thread_state__amx_bf16_begin(int32_t words) {
    const int last = words % REGISTER_WORDS;
    tile_config config = {.palette = 1};
    for (int n = 0; n < STRIPS; n++) shape_register(&config, n, REGISTER_CHANNELS, STRIP_BYTES);
    shape_register(&config, WEIGHTS, REGISTER_CHANNELS, REGISTER_WORDS * SUBP_WORD);
    shape_register(&config, WORDS, REGISTER_WORDS, STRIP_BYTES);
    if (last) {
        shape_register(&config, LAST_WEIGHTS, REGISTER_CHANNELS, last * SUBP_WORD);
        shape_register(&config, LAST_WORDS, last, STRIP_BYTES);
    }
    tile_configure(&config);
}

void bf16_thread_state__amx_bf16_end(void) { tile_release(); }

#define ADD_STRIP(n, weights, words)                              \
    if (n < strips) {                                             \
        tile_load(words, from + n * STRIP_BYTES, stride);         \
        tile_dot(n, weights, words);                              \
    }

/* The products of some words, of one tap after the other. */
#define ADD_TAPS(weights, words, row_bytes)                                                       \
    for (int32_t tap = 0; tap < taps; tap++, w += REGISTER_CHANNELS * (row_bytes)) {              \
        const uint8_t *from = x + offsets[tap] * SUBP_WORD;                                       \
        tile_load(weights, w, row_bytes);                                                         \
        ADD_STRIP(0, weights, words)                                                              \
        ADD_STRIP(1, weights, words)                                                              \
        ADD_STRIP(2, weights, words)                                                              \
        ADD_STRIP(3, weights, words)                                                              \
    }

/* Sums [channel][strip] of the pixels from `at` on, of all channels. */
INLINE void sum_products(const subp_tile *t, ptrdiff_t at, int strips, float *sums) {
    const int32_t taps = t->taps, words = t->words, last = words % REGISTER_WORDS;
    const ptrdiff_t *offsets = t->tap_offsets, stride = t->word_stride * SUBP_WORD;
    const uint8_t *w = t->values, *x = (const uint8_t *)t->x + at * SUBP_WORD;
    tile_zero(0);
    if (strips > 1) tile_zero(1);
    if (strips > 2) tile_zero(2);
    if (strips > 3) tile_zero(3);
    for (int32_t word = 0; word + REGISTER_WORDS <= words; word += REGISTER_WORDS, x += REGISTER_WORDS * stride)
        ADD_TAPS(WEIGHTS, WORDS, REGISTER_WORDS * SUBP_WORD)
    if (last) ADD_TAPS(LAST_WEIGHTS, LAST_WORDS, last * SUBP_WORD)
    const ptrdiff_t next = RUN * sizeof(float);
    tile_store(0, sums, next);
    if (strips > 1) tile_store(1, sums + REGISTER_PIXELS, next);
    if (strips > 2) tile_store(2, sums + 2 * REGISTER_PIXELS, next);
    if (strips > 3) tile_store(3, sums + 3 * REGISTER_PIXELS, next);
}

/* Channels that are stored at once: their sums fill half of the registers. */
enum { STORED_CHANNELS = 4 };

INLINE void store_channels(const subp_tile *t, int c, ptrdiff_t at, int count, const float *sums, const word_block o) {
    vf32 acc[MAX_CHANNELS][MAX_VECTORS];
    subp_tile part = *t;
    part.out_offsets = t->out_offsets + c;
    part.bias = t->bias ? t->bias + c : NULL;
    part.channels = t->channels - c;
    UNROLL for (int i = 0; i < STORED_CHANNELS; i++) {
        const vf32 start = vsum_start(&part, i);
        UNROLL for (int v = 0; v < o.vectors; v++)
            acc[i][v] = vf32_add(vf32_load(sums + (c + i) * RUN + v * REGISTER_PIXELS), start);
    }
    store_sums(&part, acc, at, count, o);
}

/* `count` pixels from `at` on: whole strips, or the last of them is not. */
INLINE void compute(const subp_tile *t, ptrdiff_t at, int count, int strips, int partial) {
    _Alignas(64) float sums[REGISTER_CHANNELS * RUN];
    sum_products(t, at, strips, sums);
    const word_block o = {.channels = STORED_CHANNELS, .vectors = strips, .partial = partial};
    for (int c = 0; c < t->channels; c += STORED_CHANNELS) store_channels(t, c, at, count, sums, o);
}

/* A function for each number of strips. */
static NOINLINE void whole_run(const subp_tile *t, ptrdiff_t at) { compute(t, at, RUN, STRIPS, 0); }
#define DEFINE_LAST(strips) \
    static NOINLINE void last_##strips(const subp_tile *t, ptrdiff_t at, int count) { \
        compute(t, at, count, strips, 1);                                            \
    }
DEFINE_LAST(1)
DEFINE_LAST(2)
DEFINE_LAST(3)
DEFINE_LAST(4)

void bf16_ubsconv_16x64__amx_bf16(const subp_tile *t) {
    static void (*const last[STRIPS])(const subp_tile *, ptrdiff_t, int) = {last_1, last_2, last_3, last_4};
    ptrdiff_t at = 0;
    for (; at + RUN <= t->count; at += RUN) whole_run(t, at);
    if (at < t->count) last[(t->count - at - 1) / REGISTER_PIXELS](t, at, (int)(t->count - at));
    if (t->next) bf16_interleave__avx512bf16(t->next);
}

/* Products of zeros take as long as any. */
ptrdiff_t bf16_peak__amx_bf16(ptrdiff_t rounds, float factor) {
    (void)factor;
    bf16_thread_state__amx_bf16_begin(REGISTER_WORDS);
    for (ptrdiff_t r = 0; r < rounds; r++) {
        tile_dot(0, WEIGHTS, WORDS);
        tile_dot(1, WEIGHTS, WORDS);
        tile_dot(2, WEIGHTS, WORDS);
        tile_dot(3, WEIGHTS, WORDS);
    }
    bf16_thread_state__amx_bf16_end();
    return 2 * STRIPS * REGISTER_CHANNELS * REGISTER_PIXELS * REGISTER_WORDS * WORD_CHANNELS;
}
