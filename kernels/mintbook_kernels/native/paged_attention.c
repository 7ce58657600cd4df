// Attention of one query row for each sequence over a cache in blocks, on a CPU.
//
// The query heads that share a key head of one sequence are the work of one thread, and read its tokens in order, `LANES`
// at a time from token 0 on. So a row's bits depend on its own query, keys and values and on the instructions in use:
// not on its neighbours, on the number of threads, on the size of a block or on where the blocks lie.

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

enum { LARGEST_SIZE = 512, HEADS = 8, LINE = 64, DONE = -1 };

// One call; paged_attention/native.py packs it. Strides are in numbers.
typedef struct {
  const void *q;
  int64_t q_row, q_head;
  const void *keys;
  int64_t key_row, key_head;
  const void *values;
  int64_t value_row, value_head;
  const int32_t *tables;
  int64_t table_row;
  const int32_t *lengths;
  void *out;  // [sequences, heads, size]
  int64_t sequences, heads, key_heads;
  int64_t size;  // of a head; at most LARGEST_SIZE
  int64_t block, blocks;
  int64_t entries;  // of a table
  double scale;
  int64_t is_bf16, level;  // level: that of mintbook_level
  int64_t threads;
  double least_ns;  // a call that takes one thread less is not shared out
} Call;

typedef struct {
  const Call *call;
  int64_t next;
} Batch;

#define BODY "head_group.h"
#include "variants.h"

// Whether a sequence has a length that its table covers, and reads blocks of the cache only.
static int fits(const Call *call, int64_t sequence) {
  const int32_t *table = call->tables + sequence * call->table_row;
  int64_t length = call->lengths[sequence];
  if (length < 1 || length > call->entries * call->block) return 0;
  int outside = 0;
  for (int64_t i = 0; i < (length + call->block - 1) / call->block; i++) outside |= table[i] < 0 || table[i] >= call->blocks;
  return !outside;
}

// Returns the number of the first sequence that does not fit, or DONE. `parallel` is GOMP_parallel of the OpenMP runtime
// that is already running, or NULL for one thread.
EXPORT int64_t mintbook_paged_attention(const Call *call, Parallel *parallel) {
  double tokens = 0;
  for (int64_t i = 0; i < call->sequences; i++) {
    if (!fits(call, i)) return i;
    tokens += call->lengths[i];
  }
  int64_t items = call->sequences * call->key_heads, threads = call->threads < items ? call->threads : items;
  double ns = tokens * (double)(call->size * (call->heads + call->key_heads)) * 0.05;
  Work *work = by_level[call->level][call->is_bf16];
  Batch batch = {call, 0};
  if (threads > 1 && parallel && ns > call->least_ns)
    parallel(work, &batch, (unsigned)threads, 0);
  else
    work(&batch);
  return DONE;
}
