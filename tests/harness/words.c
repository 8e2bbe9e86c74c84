/* Convolutions whose kernels read words: how these are laid out and packed, with cuts that are legal but arbitrary. */
#include <string.h>

#include "convolution.h"

ptrdiff_t word_place(const subp_row *kernel, ptrdiff_t words, ptrdiff_t taps, ptrdiff_t word, ptrdiff_t tap,
                     ptrdiff_t c) {
    const ptrdiff_t channels = kernel->channels, first = word / 16 * 16, row = words - first < 16 ? words - first : 16;
    if (strcmp(kernel->packing, "tile_registers")) return (word * taps + tap) * channels + c;
    return first * taps * channels + (tap * channels + c) * row + word - first;
}

const void *pack_words(const subp_conv *call, const void *values, size_t element) {
    const ptrdiff_t interleave = call->kernels[0]->interleave, terms = call->kept * call->taps;
    const ptrdiff_t taps = call->taps / call->columns; /* as kernels see them */
    const size_t size = SUBP_WORD / (size_t)interleave; /* of a weight in a word */
    char *packed = exact((size_t)(call->rows * call->words * taps * call->block * SUBP_WORD)), *tile = packed;
    for (ptrdiff_t row = 0; row < call->rows; row++)
        for (ptrdiff_t first = 0, n = 0; first < call->block; first += call->kernels[n++]->channels,
                       tile += call->words * taps * call->kernels[n - 1]->channels * SUBP_WORD)
            for (ptrdiff_t word = 0; word < call->words; word++)
                for (ptrdiff_t tap = 0; tap < call->taps; tap += call->columns)
                    for (ptrdiff_t c = 0; c < call->kernels[n]->channels; c++)
                        for (ptrdiff_t i = 0; i < interleave; i++) {
                            const ptrdiff_t place = word_place(call->kernels[n], call->words, taps, word,
                                                               tap / call->columns, c);
                            char *to = tile + place * SUBP_WORD + i * (ptrdiff_t)size;
                            const ptrdiff_t kept = word * interleave + i, k = kept / call->columns;
                            const ptrdiff_t at = (k * call->taps + tap + kept % call->columns) * call->block;
                            const ptrdiff_t value = row * terms * call->block + at + first + c;
                            const char *from = (const char *)values + value * (ptrdiff_t)element;
                            memset(to, 0, size);
                            if (k >= call->kept) continue;
                            memcpy(to, from, element);
                            if (size > element && (int8_t)*from < 0) to[1] = -1; /* int8 widened to 16 bits */
                        }
    return packed;
}

/* Offsets of whole words of channels, the last of a row again where none is left. */
static const int32_t *fill_words(const subp_conv *call) {
    const ptrdiff_t wanted = call->words * call->kernels[0]->interleave;
    int32_t *offsets = exact(sizeof(int32_t) * (size_t)(call->rows * wanted));
    for (ptrdiff_t row = 0; row < call->rows; row++)
        for (ptrdiff_t k = 0; k < wanted; k++) {
            const ptrdiff_t kept = k < call->kept * call->columns ? k : call->kept * call->columns - 1;
            const ptrdiff_t plane = call->plane_rows * call->out_w, column = kept % call->columns;
            offsets[row * wanted + k] = call->channel_offsets[row * call->kept + kept / call->columns] +
                                        (int32_t)(column * (call->copies / call->columns) * plane);
        }
    return offsets;
}

static void plan_word_planes(subp_conv *call) {
    const ptrdiff_t plane = call->plane_rows * call->out_w, band = call->band * call->out_w;
    const ptrdiff_t line = 4 * SUBP_LINE / SUBP_WORD;
    const ptrdiff_t taps = call->taps / call->columns; /* those of the first column are those of all */
    ptrdiff_t *offsets = exact(sizeof(ptrdiff_t) * (size_t)taps);
    call->halo = 0;
    for (ptrdiff_t t = 0; t < taps; t++) {
        const ptrdiff_t within = call->tap_offsets[t * call->columns] % plane;
        call->halo = within > call->halo ? within : call->halo;
    }
    const ptrdiff_t room = (call->shared ? band : call->run_pixels) + call->halo;
    call->word_plane = ((room + line - 1) / line + (one_in(2) ? 0 : 1)) * line;
    for (ptrdiff_t t = 0; t < taps; t++) {
        const ptrdiff_t from = call->tap_offsets[t * call->columns];
        offsets[t] = from / plane * call->word_plane + from % plane;
    }
    call->word_offsets = offsets;
}

const int32_t *choose_word_channels(subp_conv *call) {
    const int32_t *indices = choose_channels(call);
    call->channel_offsets = fill_words(call);
    return indices;
}

void plan_words(subp_conv *call, const shape *s) {
    call->columns = s->kernel[1] > 1 && one_in(2) ? s->kernel[1] : 1;
    call->words = (call->kept * call->columns + call->kernels[0]->interleave - 1) / call->kernels[0]->interleave;
    call->packed = call->words * SUBP_WORD / call->weight_element;
    call->shared = call->kept == s->group_in && !one_in(3);
    call->band = one_in(2) ? call->out_h : between(1, call->out_h);
    plan_planes(call, s);
    const ptrdiff_t pixels = call->band * call->out_w;
    call->tile_pixels = one_in(2) ? between(48, 49) : between(1, one_in(2) ? 60 : pixels);
    call->run_pixels = one_in(2) ? call->tile_pixels : one_in(2) ? pixels : between(1, pixels);
    plan_word_planes(call);
}

/* As threads that share a pass do it, each part with words of its own, or a pass by one thread. */
void run_words(const subp_conv *whole, const subp_conv_arrays *arrays, ptrdiff_t batch,
               const subp_conv_parts *parts) {
    subp_conv own_call = *whole; /* as kernels see kept channels and taps */
    own_call.kept *= whole->columns;
    own_call.taps /= (int32_t)whole->columns;
    const subp_conv *call = &own_call;
    const ptrdiff_t shared = subp_conv_planes(call) + subp_conv_shared_words(call), own = subp_conv_own_words(call);
    void *planes = shared ? exact((size_t)shared) : NULL, *words = own ? exact((size_t)own) : NULL;
    for (ptrdiff_t pass = 0; pass < subp_conv_passes(call) * batch; pass++) {
        if (!parts) {
            subp_conv_pass(call, arrays, pass, planes, words);
            continue;
        }
        for (ptrdiff_t fill = subp_conv_fills(call) - 1; fill >= 0; fill--)
            subp_conv_fill(call, arrays, pass, fill, planes);
        for (ptrdiff_t part = parts->parts - 1; part >= 0; part--)
            subp_conv_part(call, arrays, pass, parts, part, planes, words);
    }
}
