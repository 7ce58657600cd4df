// The query heads of one key head, for one instruction set and one precision. Included once for each, with VARIANT,
// TARGET, LANES, REGISTERS, BF16 and DOT set; DOT says that the machine multiplies pairs of bf16.

#if BF16
#define NUMBER uint16_t
#else
#define NUMBER float
#endif
#define V N(vector)
#define BLOCK (2 * LANES)               // columns of a value at a time; head sizes are padded to a multiple
#define STEP (DOT ? 2 * LANES : LANES)  // columns of a key at a time
#define TOKENS (2 * LANES)              // tokens at a time
#define WIDE (REGISTERS == 32 ? 2 : 1)  // blocks of a value at a time

typedef float V __attribute__((vector_size(4 * LANES)));
typedef uint32_t N(words) __attribute__((vector_size(4 * LANES)));
typedef int32_t N(ints) __attribute__((vector_size(4 * LANES)));
typedef float N(quarter) __attribute__((vector_size(16)));
typedef int32_t N(four) __attribute__((vector_size(16)));
#if BF16
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

// BLOCK numbers in fp32, in an order that `store_block` undoes.
INLINE TARGET N(pair) N(load_block)(const NUMBER *from) {
#if DOT
  N(words) both;
  memcpy(&both, from, sizeof both);
  return (N(pair)){(V)(both << 16), (V)(both & 0xffff0000)};
#else
  return (N(pair)){N(load)(from), N(load)(from + LANES)};
#endif
}

#if BF16
INLINE TARGET N(words) N(rounded)(V value) {
  N(words) bits = (N(words))value;
  N(words) even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  N(words) number = (N(words))(value == value);
  return (even & number) | (0x7fc0 & ~number);
}
#endif

INLINE TARGET void N(store_block)(NUMBER *to, N(pair) value) {
#if DOT
  N(words) both = N(rounded)(value.low) | (N(rounded)(value.high) << 16);
  memcpy(to, &both, sizeof both);
#elif BF16
  N(halves) low = __builtin_convertvector(N(rounded)(value.low), N(halves));
  N(halves) high = __builtin_convertvector(N(rounded)(value.high), N(halves));
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

INLINE TARGET V N(chosen)(N(ints) first, V a, V b) {
  return (V)(((N(ints))a & first) | ((N(ints))b & ~first));
}

// Neighbours are added: the sums of a, then those of b.
INLINE TARGET V N(halved)(V a, V b) {
#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define COUNTED 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#define COUNTED 0, 1, 2, 3, 4, 5, 6, 7
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#define COUNTED 0, 1, 2, 3
#endif
#if defined(__clang__)
  return __builtin_shufflevector(a, b, EVEN) + __builtin_shufflevector(a, b, ODD);
#else
  return __builtin_shuffle(a, b, (N(ints)){EVEN}) + __builtin_shuffle(a, b, (N(ints)){ODD});
#endif
}

INLINE TARGET float N(largest)(V values) {
  N(quarter) part[LANES / 4];
  memcpy(part, &values, sizeof values);
#pragma GCC unroll 2
  for (int count = LANES / 8; count; count /= 2)
#pragma GCC unroll 2
    for (int i = 0; i < count; i++) {
      N(quarter) a = part[i], b = part[i + count];
      part[i] = (N(quarter))(((N(four))a & (a > b)) | ((N(four))b & ~(a > b)));
    }
  float low = part[0][0] > part[0][1] ? part[0][0] : part[0][1];
  float high = part[0][2] > part[0][3] ? part[0][2] : part[0][3];
  return low > high ? low : high;
}

INLINE TARGET float N(total)(V values) {
#pragma GCC unroll 4
  for (int lanes = LANES; lanes > 1; lanes /= 2) values = N(halved)(values, values);
  return values[0];
}

// 2^x for x <= 0, by its Taylor series around the nearest whole number; 0 below 2^-126, and 1 exactly for 0.
INLINE TARGET V N(power)(V x) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: a sum with it has no room for a fraction
  V shifted = x + shift, f = x - (shifted - shift);
  V series = f * 1.5403530e-4f + 1.3333558e-3f;
  series = series * f + 9.6181291e-3f;
  series = series * f + 5.5504109e-2f;
  series = series * f + 0.24022651f;
  series = series * f + 0.69314718f;
  series = series * f + 1.0f;
  V whole = (V)(((N(words))shifted + 127) << 23);
  return (V)((N(ints))(series * whole) & ~(x < -126.0f));
}

// The same for HEADS numbers.
INLINE TARGET void N(powers)(float *x) {
  V all[(HEADS + LANES - 1) / LANES] = {{0}};
  memcpy(all, x, HEADS * sizeof *x);
#pragma GCC unroll 2
  for (int i = 0; i < (HEADS + LANES - 1) / LANES; i++) all[i] = N(power)(all[i]);
  memcpy(x, all, HEADS * sizeof *x);
}

// q . k of LANES keys.
INLINE TARGET V N(products)(const NUMBER *q, const NUMBER *const *key, int64_t size) {
  V sums[LANES];
#pragma GCC unroll 16
  for (int t = 0; t < LANES; t++) sums[t] = (V){0};
  for (int64_t d = 0; d < size; d += STEP)
#pragma GCC unroll 16
    for (int t = 0; t < LANES; t++) sums[t] = N(multiplied)(sums[t], q + d, key[t] + d);
#pragma GCC unroll 8
  for (int count = LANES / 2; count; count /= 2)
#pragma GCC unroll 8
    for (int t = 0; t < count; t++) sums[t] = N(halved)(sums[2 * t], sums[2 * t + 1]);
  return sums[0];
}

// Sum over tokens of weight * value, for `heads` heads and `blocks` blocks of columns; `kept` scales what is there.
INLINE TARGET void N(add_block)(int heads, int blocks, N(pair) *sums, int64_t stride, const float *kept,
                                const float (*weights)[TOKENS], const NUMBER *const *value, int64_t column, int count) {
  N(pair) all[4 * WIDE];
#pragma GCC unroll 4
  for (int h = 0; h < heads; h++)
#pragma GCC unroll 2
    for (int j = 0; j < blocks; j++) {
      all[h * blocks + j].low = sums[h * stride + j].low * kept[h];
      all[h * blocks + j].high = sums[h * stride + j].high * kept[h];
    }
  for (int t = 0; t < count; t++)
#pragma GCC unroll 2
    for (int j = 0; j < blocks; j++) {
      N(pair) row = N(load_block)(value[t] + column + j * BLOCK);
#pragma GCC unroll 4
      for (int h = 0; h < heads; h++) {
        all[h * blocks + j].low += row.low * weights[h][t];
        all[h * blocks + j].high += row.high * weights[h][t];
      }
    }
#pragma GCC unroll 4
  for (int h = 0; h < heads; h++)
#pragma GCC unroll 2
    for (int j = 0; j < blocks; j++) sums[h * stride + j] = all[h * blocks + j];
}

INLINE TARGET void N(add_values)(int heads, N(pair) *sums, int64_t size, const float *kept,
                                 const float (*weights)[TOKENS], const NUMBER *const *value, int count) {
  int64_t blocks = size / BLOCK, j = 0;
  for (; j + WIDE <= blocks; j += WIDE)
    N(add_block)(heads, WIDE, sums + j, blocks, kept, weights, value, j * BLOCK, count);
  for (; j < blocks; j++) N(add_block)(heads, 1, sums + j, blocks, kept, weights, value, j * BLOCK, count);
}

// Where TOKENS tokens of a sequence lie, and which come next.
typedef struct {
  const NUMBER *key[TOKENS], *value[TOKENS];
  int count;
} N(rows);

typedef struct {
  const Call *call;
  const NUMBER *keys, *values;
  const int32_t *entry;
  int64_t offset, left;
} N(place);

INLINE TARGET void N(find_rows)(N(place) *place, N(rows) *rows) {
  const Call *call = place->call;
  int count = place->left < TOKENS ? (int)place->left : TOKENS;
  rows->count = count;
  place->left -= count;
  for (int t = 0; t < count; t++) {
    int64_t row = *place->entry * call->block + place->offset;
    const NUMBER *key = place->keys + row * call->key_row, *value = place->values + row * call->value_row;
    for (int64_t d = 0; d < call->size; d += LINE / (int64_t)sizeof(NUMBER))
      __builtin_prefetch(key + d), __builtin_prefetch(value + d);
    rows->key[t] = key;
    rows->value[t] = value;
    if (++place->offset == call->block) place->offset = 0, place->entry++;
  }
}

static TARGET void N(attend)(const Call *call, int64_t sequence, int64_t key_head, int64_t head, int heads) {
  int64_t size = (call->size + BLOCK - 1) / BLOCK * BLOCK, blocks = size / BLOCK;
  size_t bytes = (size_t)call->size * sizeof(NUMBER);
  float scale = (float)(call->scale * 1.4426950408889634);  // log2(e): the weights are powers of 2
  NUMBER q[HEADS * LARGEST_SIZE], copies[2][TOKENS * LARGEST_SIZE];
  N(pair) sums[HEADS * LARGEST_SIZE / BLOCK];
  V divisors[HEADS];
  float weights[HEADS][TOKENS], kept[HEADS] = {0}, most[HEADS];
  N(place) place = {call,
                    (const NUMBER *)call->keys + key_head * call->key_head,
                    (const NUMBER *)call->values + key_head * call->value_head,
                    call->tables + sequence * call->table_row,
                    0,
                    call->lengths[sequence]};
  N(rows) rows[2];

  for (int i = 0; size != call->size && i < 2; i++) memset(copies[i], 0, (size_t)(TOKENS * size) * sizeof(NUMBER));
  memset(sums, 0, (size_t)(heads * blocks) * sizeof *sums);
  for (int h = 0; h < heads; h++) {
    memset(q + h * size, 0, (size_t)size * sizeof(NUMBER));
    memcpy(q + h * size, (const NUMBER *)call->q + sequence * call->q_row + (head + h) * call->q_head, bytes);
    divisors[h] = (V){0};
    most[h] = -INFINITY;
  }
  N(find_rows)(&place, &rows[0]);
  for (int turn = 0; rows[turn].count; turn = !turn) {
    const NUMBER **key = rows[turn].key, **value = rows[turn].value;
    int count = rows[turn].count;
    N(find_rows)(&place, &rows[!turn]);
    for (int t = 0; size != call->size && t < count; t++) {
      key[t] = memcpy(copies[0] + t * size, key[t], bytes);
      value[t] = memcpy(copies[1] + t * size, value[t], bytes);
    }
    for (int t = count; t < TOKENS; t++) key[t] = key[0];
    for (int h = 0; h < heads; h++) {
      V low = N(products)(q + h * size, key, size) * scale, high = (V){0} - INFINITY;
      low = N(chosen)((N(ints)){COUNTED} < count, low, high);
      if (count > LANES)
        high = N(chosen)((N(ints)){COUNTED} < count - LANES, N(products)(q + h * size, key + LANES, size) * scale, high);
      float larger = N(largest)(N(chosen)(low > high, low, high));
      larger = larger > most[h] ? larger : most[h];
      kept[h] = most[h] - larger;
      most[h] = larger;
      low = N(power)(low - larger), high = N(power)(high - larger);
      memcpy(weights[h], &low, sizeof low);
      memcpy(weights[h] + LANES, &high, sizeof high);
    }
    N(powers)(kept);
    for (int h = 0; h < heads; h++) {
      V low, high;
      memcpy(&low, weights[h], sizeof low);
      memcpy(&high, weights[h] + LANES, sizeof high);
      divisors[h] = divisors[h] * kept[h] + (low + high);
    }
    int h = 0;
    for (; h + 4 <= heads; h += 4) N(add_values)(4, sums + h * blocks, size, kept + h, weights + h, value, count);
    if (heads - h == 3) N(add_values)(3, sums + h * blocks, size, kept + h, weights + h, value, count);
    if (heads - h == 2) N(add_values)(2, sums + h * blocks, size, kept + h, weights + h, value, count);
    if (heads - h == 1) N(add_values)(1, sums + h * blocks, size, kept + h, weights + h, value, count);
  }
  for (int h = 0; h < heads; h++) {
    float divisor = N(total)(divisors[h]);
    for (int64_t j = 0; j < blocks; j++) {
      N(pair) sum = sums[h * blocks + j];
      N(store_block)(q + j * BLOCK, (N(pair)){sum.low / divisor, sum.high / divisor});
    }
    memcpy((NUMBER *)call->out + (sequence * call->heads + head + h) * call->size, q, bytes);
  }
}

static TARGET void N(work)(void *argument) {
  Batch *batch = argument;
  const Call *call = batch->call;
  int64_t sharing = call->heads / call->key_heads, item;
  while ((item = __atomic_fetch_add(&batch->next, 1, __ATOMIC_RELAXED)) < call->sequences * call->key_heads) {
    int64_t key_head = item % call->key_heads;
    for (int64_t g = 0; g < sharing; g += HEADS)
      N(attend)(call, item / call->key_heads, key_head, key_head * sharing + g, sharing - g < HEADS ? (int)(sharing - g) : HEADS);
  }
}

#undef NUMBER
#undef V
#undef BLOCK
#undef STEP
#undef TOKENS
#undef WIDE
#undef EVEN
#undef ODD
#undef COUNTED
#undef VARIANT
#undef TARGET
#undef LANES
#undef REGISTERS
#undef BF16
#undef DOT
