// One tile of rows, for one instruction set and one precision. Included once for each, with VARIANT, TARGET, LANES,
// REGISTERS, BF16 and DOT set; DOT says that the machine multiplies pairs of bf16.

#if BF16
#define NUMBER uint16_t
#else
#define NUMBER float
#endif
#define V N(vector)
#define BLOCK (2 * LANES)                      // columns of y at a time
#define STEP (DOT ? 2 * LANES : LANES)         // columns of x at a time
#define Y_ROWS (REGISTERS == 32 ? 8 : 4)       // rows of y at a time
#define X_ROWS (REGISTERS == 32 ? 4 : 2)       // rows of x at a time

typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t N(ints) __attribute__((vector_size(4 * LANES)));
#if BF16
typedef uint32_t N(words) __attribute__((vector_size(4 * LANES)));
typedef uint16_t N(halves) __attribute__((vector_size(2 * LANES)));
#endif

typedef struct {
  V low, high;
} N(pair);

INLINE TARGET V N(load)(const NUMBER *from) {
#if BF16
  N(halves) half;
  memcpy(&half, from, sizeof half);
  return (V)(__builtin_convertvector(half, N(words)) << 16);
#else
  V whole;
  memcpy(&whole, from, sizeof whole);
  return whole;
#endif
}

// BLOCK numbers in fp32, in an order that is the same for B and y.
INLINE TARGET N(pair) N(load_block)(const NUMBER *from) {
#if DOT
  __m512i both = _mm512_loadu_si512(from), zero = _mm512_setzero_si512();
  return (N(pair)){(V)_mm512_unpacklo_epi16(zero, both), (V)_mm512_unpackhi_epi16(zero, both)};
#else
  return (N(pair)){N(load)(from), N(load)(from + LANES)};
#endif
}

#if BF16 && !DOT
INLINE TARGET N(halves) N(rounded)(V value) {
  N(words) bits = (N(words))value;
  N(words) even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  N(words) number = (N(words))(value == value);
  return __builtin_convertvector((even & number) | (0x7fc0 & ~number), N(halves));
}
#endif

INLINE TARGET void N(store_block)(NUMBER *to, N(pair) value) {
#if DOT
  const __m512i natural = _mm512_set_epi16(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8,  //
                                           23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)value.high, (__m512)value.low);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(natural, both));
#elif BF16
  N(halves) low = N(rounded)(value.low), high = N(rounded)(value.high);
  memcpy(to, &low, sizeof low);
  memcpy(to + LANES, &high, sizeof high);
#else
  memcpy(to, &value, sizeof value);
#endif
}

INLINE TARGET V N(multiplied)(V sum, const NUMBER *x, const NUMBER *a) {
#if DOT
  return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(x), (__m512bh)_mm512_loadu_si512(a));
#else
  return sum + N(load)(x) * N(load)(a);
#endif
}

// Neighbours are added: the sums of a, then those of b.
INLINE TARGET V N(halved)(V a, V b) {
#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#endif
#if defined(__clang__)
  return __builtin_shufflevector(a, b, EVEN) + __builtin_shufflevector(a, b, ODD);
#else
  return __builtin_shuffle(a, b, (N(ints)){EVEN}) + __builtin_shuffle(a, b, (N(ints)){ODD});
#endif
#undef EVEN
#undef ODD
}

// The sum over the lanes of each of `count` <= LANES vectors, a power of two: every one is added up in the same order.
INLINE TARGET V N(totals)(V *sums, int count) {
  const V zero = {0};
#pragma GCC unroll 8
  for (int lanes = LANES; lanes > 1; lanes /= 2, count = (count + 1) / 2)
#pragma GCC unroll 8
    for (int i = 0; i < (count + 1) / 2; i++) sums[i] = N(halved)(sums[2 * i], 2 * i + 1 < count ? sums[2 * i + 1] : zero);
  return sums[0];
}

// h[i, r] = scale * (x_i . a_r) for `rows` rows of x and `ranks` rank-rows, rows * ranks <= LANES.
INLINE TARGET void N(products)(int rows, int ranks, const NUMBER *const *x, const NUMBER *a, int64_t a_stride, int64_t in,
                               float scale, float *h, int64_t h_stride, Ahead *ahead) {
  V sums[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < rows * ranks; i++) sums[i] = (V){0};
  int64_t k = 0;
  for (; k + STEP <= in; k += STEP) {
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 16
      for (int r = 0; r < ranks; r++)
        sums[i * ranks + r] = N(multiplied)(sums[i * ranks + r], x[i] + k, a + r * a_stride + k);
    fetch(ahead);
  }
  if (k < in) {
    size_t left = (size_t)(in - k) * sizeof(NUMBER);
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 16
      for (int r = 0; r < ranks; r++) {
        NUMBER x_rest[STEP] = {0}, a_rest[STEP] = {0};
        memcpy(x_rest, x[i] + k, left);
        memcpy(a_rest, a + r * a_stride + k, left);
        sums[i * ranks + r] = N(multiplied)(sums[i * ranks + r], x_rest, a_rest);
      }
  }
  V all = N(totals)(sums, rows * ranks) * scale;
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++) memcpy(h + i * h_stride, (const float *)&all + i * ranks, (size_t)ranks * sizeof(float));
}

INLINE TARGET void N(shrink_rows)(int rows, const NUMBER *const *x, const NUMBER *a, int64_t a_stride, int64_t in,
                                  int32_t rank, float scale, float *h, Ahead *ahead) {
  int32_t r = 0;
  for (; r + LANES / rows <= rank; r += LANES / rows)
    N(products)(rows, LANES / rows, x, a + r * a_stride, a_stride, in, scale, h + r, rank, ahead);
#if LANES == 16
  if (rows == 1 && r + 8 <= rank) {
    N(products)(1, 8, x, a + r * a_stride, a_stride, in, scale, h + r, rank, ahead);
    r += 8;
  }
#endif
#if LANES >= 8
  if (rows <= 2 && r + 4 <= rank) {
    N(products)(rows, 4, x, a + r * a_stride, a_stride, in, scale, h + r, rank, ahead);
    r += 4;
  }
#endif
  for (; r < rank; r++) N(products)(rows, 1, x, a + r * a_stride, a_stride, in, scale, h + r, rank, ahead);
}

static TARGET void N(shrink)(const NUMBER *const *x, int32_t rows, const NUMBER *a, int64_t a_stride, int64_t in,
                             int32_t rank, float scale, float *h, Ahead *ahead) {
  int32_t i = 0;
#if LANES == 16
  for (; i + 4 <= rows; i += 4) N(shrink_rows)(4, x + i, a, a_stride, in, rank, scale, h + i * rank, ahead);
#endif
  for (; i + 2 <= rows; i += 2) N(shrink_rows)(2, x + i, a, a_stride, in, rank, scale, h + i * rank, ahead);
  if (i < rows) N(shrink_rows)(1, x + i, a, a_stride, in, rank, scale, h + i * rank, ahead);
}

// BLOCK columns of `rows` rows of y; B comes from the bank, or from `panel`, where it lies in fp32.
INLINE TARGET void N(add_block)(int rows, NUMBER *const *y, int64_t column, const float *h, int32_t rank, const NUMBER *b,
                                int64_t b_stride, const N(pair) *panel, int64_t panel_stride) {
  N(pair) sums[Y_ROWS];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) sums[i] = N(load_block)(y[i] + column);
  for (int32_t r = 0; r < rank; r++) {
    N(pair) row = panel ? panel[r * panel_stride] : N(load_block)(b + r * b_stride);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      float weight = h[i * rank + r];
      sums[i].low += row.low * weight;
      sums[i].high += row.high * weight;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) N(store_block)(y[i] + column, sums[i]);
}

INLINE TARGET void N(expand_few)(int rows, NUMBER *const *y, int64_t from, int64_t to, const float *h, int32_t rank,
                                 const NUMBER *b, int64_t b_stride, Ahead *ahead) {
  for (int64_t column = from; column < to; column += BLOCK) {
    N(add_block)(rows, y, column, h, rank, b + column, b_stride, NULL, 0);
    fetch(ahead);
  }
}

INLINE TARGET void N(expand_panel)(int rows, NUMBER *const *y, int64_t from, int64_t blocks, const float *h, int32_t rank,
                                   const N(pair) *panel) {
  for (int64_t block = 0; block < blocks; block++)
    N(add_block)(rows, y, from + block * BLOCK, h, rank, NULL, 0, panel + block * rank, 1);
}

static TARGET void N(expand_many)(NUMBER *const *y, int32_t rows, int64_t to, const float *h, int32_t rank,
                                  const NUMBER *b, int64_t b_stride, Ahead *ahead) {
  N(pair) panel[PANEL_NUMBERS / BLOCK];
  int64_t most = PANEL_NUMBERS / BLOCK / rank;
  for (int64_t from = 0; from < to; from += most * BLOCK) {
    int64_t blocks = (to - from) / BLOCK < most ? (to - from) / BLOCK : most;
    for (int64_t block = 0; block < blocks; block++) {
      for (int32_t r = 0; r < rank; r++) panel[block * rank + r] = N(load_block)(b + r * b_stride + from + block * BLOCK);
      fetch(ahead);
    }
    int32_t i = 0;
    for (; i + Y_ROWS <= rows; i += Y_ROWS) N(expand_panel)(Y_ROWS, y + i, from, blocks, h + i * rank, rank, panel);
    for (; i + 2 <= rows; i += 2) N(expand_panel)(2, y + i, from, blocks, h + i * rank, rank, panel);
    if (i < rows) N(expand_panel)(1, y + i, from, blocks, h + i * rank, rank, panel);
  }
}

static TARGET void N(expand_rest)(NUMBER *const *y, int32_t rows, int64_t from, int64_t count, const float *h, int32_t rank,
                                  const NUMBER *b, int64_t b_stride) {
  size_t bytes = (size_t)count * sizeof(NUMBER);
  for (int32_t i = 0; i < rows; i++) {
    NUMBER y_rest[BLOCK] = {0}, b_rest[BLOCK] = {0};
    memcpy(y_rest, y[i] + from, bytes);
    N(pair) sum = N(load_block)(y_rest);
    for (int32_t r = 0; r < rank; r++) {
      memcpy(b_rest, b + r * b_stride + from, bytes);
      N(pair) row = N(load_block)(b_rest);
      sum.low += row.low * h[i * rank + r];
      sum.high += row.high * h[i * rank + r];
    }
    N(store_block)(y_rest, sum);
    memcpy(y[i] + from, y_rest, bytes);
  }
}

static TARGET void N(expand)(NUMBER *const *y, int32_t rows, int64_t out, const float *h, int32_t rank, const NUMBER *b,
                             int64_t b_stride, Ahead *ahead) {
  int64_t whole = out / BLOCK * BLOCK;
  int32_t i = 0;
  if (rows > 4 && rank <= PANEL_NUMBERS / BLOCK) {
    N(expand_many)(y, rows, whole, h, rank, b, b_stride, ahead);
  } else {
    for (; i + 4 <= rows; i += 4) N(expand_few)(4, y + i, 0, whole, h + i * rank, rank, b, b_stride, ahead);
    for (; i + 2 <= rows; i += 2) N(expand_few)(2, y + i, 0, whole, h + i * rank, rank, b, b_stride, ahead);
    if (i < rows) N(expand_few)(1, y + i, 0, whole, h + i * rank, rank, b, b_stride, ahead);
  }
  if (whole < out) N(expand_rest)(y, rows, whole, out - whole, h, rank, b, b_stride);
}

static TARGET void N(tile)(const Batch *batch, const Tile *tile, const Tile *next) {
  const Factors *f = batch->factors;
  float h[H_NUMBERS];
  const NUMBER *x[TILE_ROWS];
  NUMBER *y[TILE_ROWS];
  for (int32_t i = 0; i < tile->count; i++) {
    int64_t row = batch->order[tile->first + i];
    x[i] = (const NUMBER *)(batch->x + row * batch->x_stride);
    y[i] = (NUMBER *)(batch->y + row * batch->y_stride);
  }
  for (int64_t j = 0; j < f->linears; j++) {
    const Linear *linear = f->linear + j;
    int32_t rank = f->rank[j * f->slots + tile->slot];
    int64_t start = f->start[tile->slot], width = sizeof(NUMBER);
    if (rank > 0) {
      const NUMBER *b = (const NUMBER *)linear->b + start * linear->b_stride;
      Ahead ahead = ahead_of(b, linear->b_stride * width, rank, linear->out * width, f->in / STEP);
      N(shrink)(x, tile->count, (const NUMBER *)linear->a + start * linear->a_stride, linear->a_stride, f->in, rank,
                f->scale[j * f->slots + tile->slot], h, &ahead);
      int64_t after = j + 1 < f->linears ? j + 1 : 0;
      int32_t slot = after ? tile->slot : next ? next->slot : -1;
      int32_t rows = slot < 0 ? 0 : f->rank[after * f->slots + slot];
      Ahead onward = {0};
      if (rows > 0) {
        const Linear *then = f->linear + after;
        onward = ahead_of((const NUMBER *)then->a + f->start[slot] * then->a_stride, then->a_stride * width, rows,
                          f->in * width, linear->out / BLOCK);
      }
      N(expand)(y, tile->count, linear->out, h, rank, b, linear->b_stride, &onward);
    }
    for (int32_t i = 0; i < tile->count; i++) y[i] += linear->out;
  }
}

static void N(work)(void *argument) {
  Batch *batch = argument;
  int32_t at = __atomic_fetch_add(&batch->next, 1, __ATOMIC_RELAXED);
  while (at < batch->tile_count) {
    int32_t after = __atomic_fetch_add(&batch->next, 1, __ATOMIC_RELAXED);
    N(tile)(batch, batch->tiles + at, after < batch->tile_count ? batch->tiles + after : NULL);
    at = after;
  }
}

#undef NUMBER
#undef V
#undef BLOCK
#undef STEP
#undef Y_ROWS
#undef X_ROWS
#undef VARIANT
#undef TARGET
#undef LANES
#undef REGISTERS
#undef BF16
#undef DOT
