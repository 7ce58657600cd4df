// The update of many adapters on a CPU: y[t, off_j : off_j + O_j] += scale[j, s] * (x[t] A_j^T) B_j^T, s the slot of row t.
//
// A slot's rows are cut into tiles; one tile is the work of one thread. A number of h is a sum of `LANES` partial sums
// in a fixed order, a number of y is a chain over the ranks: neither order depends on the tile, so a row's bits do not
// depend on its neighbours or on the number of threads.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

enum { ABI = 1, TILE_ROWS = 32, H_NUMBERS = 16384, PANEL_NUMBERS = 4096, LINE = 64 };
enum { DONE = 0, NO_MEMORY = 1, RANK_TOO_LARGE = 2 };

typedef struct {
  const void *a, *b;
  int64_t a_stride, b_stride, out;  // in numbers, not bytes
} Linear;

typedef struct {
  int64_t linears, slots, in, is_bf16;
  const Linear *linear;
  const int64_t *start;
  const int32_t *rank;  // [linears, slots]
  const float *scale;   // [linears, slots]
} Factors;

typedef struct {
  int32_t slot, first, count;  // rows order[first : first + count]
} Tile;

typedef struct {
  const Factors *factors;
  const char *x;
  char *y;
  int64_t x_stride, y_stride;  // in bytes
  const int32_t *order;
  const Tile *tiles;
  int32_t tile_count, next;
} Batch;

// What is read next, fetched a few lines at a time while something else is computed: a rank-row is a page of its own,
// where no hardware prefetcher is warm.
typedef struct {
  const char *at;
  int64_t stride, lines;
  int32_t rows, row, per_step;
} Ahead;

INLINE Ahead ahead_of(const void *at, int64_t stride, int32_t rows, int64_t bytes, int64_t steps) {
  int64_t skew = (int64_t)((uintptr_t)at % LINE);
  int64_t lines = (bytes + skew + LINE - 1) / LINE * rows;
  return (Ahead){(const char *)at - skew, stride, lines, rows, 0, (int32_t)((lines + steps - 1) / (steps ? steps : 1))};
}

INLINE void fetch(Ahead *ahead) {
  for (int32_t i = 0; i < ahead->per_step && ahead->lines; i++, ahead->lines--) {
    __builtin_prefetch(ahead->at + ahead->row * ahead->stride);
    if (++ahead->row == ahead->rows) ahead->row = 0, ahead->at += LINE;
  }
}

#define BODY "tile.h"
#include "variants.h"

// 0: the compiler's baseline, 1: AVX2, 2: AVX512, 3: AVX512 with BF16 products.
EXPORT int mintbook_level(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

EXPORT int mintbook_abi(void) { return ABI; }

// Estimated nanoseconds on one core: a number of the factors comes from memory once, and is multiplied for every row.
static double cost(const Factors *f, int32_t slot, int32_t rows) {
  double numbers = 0;
  for (int64_t j = 0; j < f->linears; j++) numbers += (double)f->rank[j * f->slots + slot] * (double)(f->in + f->linear[j].out);
  return numbers * (0.2 + 0.015 * rows);
}

static int32_t tile_rows(const Factors *f, int32_t slot, int64_t count, int threads) {
  int32_t most = 1;
  for (int64_t j = 0; j < f->linears; j++)
    if (f->rank[j * f->slots + slot] > most) most = f->rank[j * f->slots + slot];
  int64_t share = (count + threads - 1) / threads, rows = (share + 7) / 8 * 8;
  if (rows > TILE_ROWS) rows = TILE_ROWS;
  return H_NUMBERS / most < rows ? H_NUMBERS / most : (int32_t)rows;
}

// `parallel` is GOMP_parallel of the OpenMP runtime that is already running, or NULL for one thread.
EXPORT int mintbook_add_update(const Factors *factors, const void *x, int64_t x_stride, void *y, int64_t y_stride,
                               const int32_t *slots, const int32_t *order, int64_t count, int level, int threads,
                               double least_ns, Parallel *parallel) {
  Tile few[64], *tiles = count <= 64 ? few : malloc((size_t)count * sizeof(Tile));
  if (!tiles) return NO_MEMORY;
  int32_t made = 0;
  double ns = 0;
  for (int32_t at = 0; at < count;) {
    int32_t slot = slots[order[at]], end = at + 1, rows = tile_rows(factors, slot, count, threads);
    while (end < count && slots[order[end]] == slot) end++;
    if (rows == 0) {
      if (tiles != few) free(tiles);
      return RANK_TOO_LARGE;
    }
    ns += cost(factors, slot, end - at);
    for (; at < end; at += rows) tiles[made++] = (Tile){slot, at, end - at < rows ? end - at : rows};
    at = end;
  }
  int64_t bytes = factors->is_bf16 ? 2 : 4;
  Batch batch = {factors, x, y, x_stride * bytes, y_stride * bytes, order, tiles, made, 0};
  Work *work = by_level[level][factors->is_bf16];
  if (threads > made) threads = made;
  if (threads > 1 && parallel && ns > least_ns)
    parallel(work, &batch, (unsigned)threads, 0);
  else
    work(&batch);
  if (tiles != few) free(tiles);
  return DONE;
}
