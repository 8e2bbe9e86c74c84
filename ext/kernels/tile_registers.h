/* AMX's tile registers: eight matrices of up to 16 rows of 64 bytes, each of the shape that a configuration gives it.
 * The names are those of the manual's operations; register numbers are literals.
 *
 * Not the intrinsics: those of GCC 12 do not tell the compiler which memory they read, and it may leave out the stores
 * to it. The tests compile the same kernels on an emulation of these, which is not part of the product. */
#ifndef SUBP_TILE_REGISTERS_H
#define SUBP_TILE_REGISTERS_H

#include <stddef.h>
#include <stdint.h>

enum { TILE_REGISTERS = 8, TILE_MAX_ROWS = 16, TILE_MAX_BYTES = 64 };

/* What LDTILECFG reads. Registers without rows are not there. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16]; /* of the registers, then 0 */
    uint8_t rows[16];       /* likewise */
} tile_config;

_Static_assert(sizeof(tile_config) == 64, "LDTILECFG reads 64 bytes");

#ifdef SUBP_EMULATED_TILES
#include "emulated_tiles.h"
#else

/* Gives the registers their shapes, and zeros. */
static inline void tile_configure(const tile_config *config) { __asm__ volatile("ldtilecfg %0" : : "m"(*config)); }

/* Leaves the registers as a thread has them that never used any: the system then has nothing to save. */
static inline void tile_release(void) { __asm__ volatile("tilerelease"); }

#define tile_zero(n) TILE_ZERO(n)
/* Rows `stride` bytes apart; no more of each than its register holds is read or written. */
#define tile_load(n, from, stride) TILE_LOAD(n, from, stride)
#define tile_store(n, to, stride) TILE_STORE(n, to, stride)
/* c[m][n] += the products of the pairs of bfloat16 in a[m][..] and b[..][n]. */
#define tile_dot(c, a, b) TILE_DOT(c, a, b)

/* Numbers may come as macros: these see them as literals. */
#define TILE_ZERO(n) __asm__ volatile("tilezero %%tmm" #n : :)
#define TILE_LOAD(n, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #n : : "r"(from), "r"((ptrdiff_t)(stride)) : "memory")
#define TILE_STORE(n, to, stride) \
    __asm__ volatile("tilestored %%tmm" #n ", (%0,%1,1)" : : "r"(to), "r"((ptrdiff_t)(stride)) : "memory")
#define TILE_DOT(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)

#endif

#endif
