/* AMX's tile registers in plain C, after the operations in Intel's manual (LDTILECFG, TILELOADD, TDPBF16PS ...):
 * kernels on them run on CPUs without AMX, and under sanitizers, which do not see what the instructions touch. What
 * would be an invalid instruction or a fault there ends the program here. Included by ext/kernels/tile_registers.h. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bfloat16.h"

static _Thread_local struct {
    tile_config config; /* all zero: as after TILERELEASE */
    uint8_t bytes[TILE_REGISTERS][TILE_MAX_ROWS][TILE_MAX_BYTES];
} tiles;

static inline void tile_demand(int fine, const char *what) {
    if (fine) return;
    fprintf(stderr, "tile registers: %s\n", what);
    __builtin_trap();
}

static inline void tile_demand_register(int n) {
    tile_demand(n >= 0 && n < TILE_REGISTERS && tiles.config.palette == 1, "an instruction before a configuration");
    tile_demand(tiles.config.rows[n] && tiles.config.row_bytes[n], "a register that is not configured");
}

static inline void tile_configure(const tile_config *config) {
    static const uint8_t zeros[14];
    tile_demand(config->palette == 1 && !config->start_row, "a palette other than 1, or a start row");
    tile_demand(!memcmp(config->reserved, zeros, sizeof(zeros)), "reserved bytes that are not 0");
    for (int n = 0; n < 16; n++)
        if (n < TILE_REGISTERS)
            tile_demand(config->rows[n] <= TILE_MAX_ROWS && config->row_bytes[n] <= TILE_MAX_BYTES &&
                            !config->rows[n] == !config->row_bytes[n], "a shape that no register has");
        else
            tile_demand(!config->rows[n] && !config->row_bytes[n], "more registers than there are");
    memset(&tiles, 0, sizeof(tiles));
    tiles.config = *config;
}

static inline void tile_release(void) { memset(&tiles, 0, sizeof(tiles)); }

/* Whether the thread would leave a state behind. */
int subp_tiles_configured(void);
int subp_tiles_configured(void) { return tiles.config.palette != 0; }

static inline void tile_zero(int n) {
    tile_demand_register(n);
    memset(tiles.bytes[n], 0, sizeof(tiles.bytes[n]));
}

static inline void tile_load(int n, const void *from, ptrdiff_t stride) {
    tile_zero(n); /* what is beyond the shape, too */
    for (int m = 0; m < tiles.config.rows[n]; m++)
        memcpy(tiles.bytes[n][m], (const char *)from + m * stride, tiles.config.row_bytes[n]);
}

static inline void tile_store(int n, void *to, ptrdiff_t stride) {
    tile_demand_register(n);
    for (int m = 0; m < tiles.config.rows[n]; m++)
        memcpy((char *)to + m * stride, tiles.bytes[n][m], tiles.config.row_bytes[n]);
}

/* Denormals are zeros, in operands and in results. */
static inline float tile_flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }

/* Number i of a register's row. */
static inline float tile_half(int n, int row, int i) {
    uint16_t bits;
    memcpy(&bits, &tiles.bytes[n][row][i * (int)sizeof(bits)], sizeof(bits));
    return tile_flush(subp_from_bfloat16(bits));
}

/* Even and odd numbers have sums of their own, one fused product after the other to the nearest, ties to even; they
 * meet at the end, and then what the register held is added. */
static inline void tile_dot(int c, int a, int b) {
    const tile_config *shape = &tiles.config;
    tile_demand_register(c);
    tile_demand_register(a);
    tile_demand_register(b);
    tile_demand(a != b && a != c && b != c, "one register for two operands");
    tile_demand(shape->row_bytes[a] % 4 == 0 && shape->row_bytes[b] % 4 == 0, "rows that are not whole pairs");
    tile_demand(shape->rows[c] == shape->rows[a] && shape->row_bytes[c] == shape->row_bytes[b] &&
                    shape->row_bytes[a] / 4 == shape->rows[b], "operands whose shapes do not fit");
    for (int m = 0; m < shape->rows[c]; m++)
        for (int n = 0; n < shape->row_bytes[c] / 4; n++) {
            float sums[2] = {0, 0}, held;
            for (int k = 0; k < shape->rows[b]; k++)
                for (int i = 0; i < 2; i++)
                    sums[i] = tile_flush(fmaf(tile_half(a, m, 2 * k + i), tile_half(b, k, 2 * n + i), sums[i]));
            memcpy(&held, &tiles.bytes[c][m][n * 4], sizeof(held));
            held = tile_flush(tile_flush(held) + tile_flush(sums[0] + sums[1]));
            memcpy(&tiles.bytes[c][m][n * 4], &held, sizeof(held));
        }
}
