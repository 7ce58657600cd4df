// Compiles BODY, a header of functions named N(…), once for each instruction set and precision, and collects their
// `work` in `by_level`. Included by each op, with BODY set.

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define N(name) JOIN(name, VARIANT)

#if defined(__x86_64__)
#define VARIANT dot512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define LANES 16
#define REGISTERS 32
#define BF16 1
#define DOT 1
#include BODY

#define VARIANT bf512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define LANES 16
#define REGISTERS 32
#define BF16 1
#define DOT 0
#include BODY

#define VARIANT f512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define LANES 16
#define REGISTERS 32
#define BF16 0
#define DOT 0
#include BODY

#define VARIANT bf256
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define REGISTERS 16
#define BF16 1
#define DOT 0
#include BODY

#define VARIANT f256
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define REGISTERS 16
#define BF16 0
#define DOT 0
#include BODY
#endif

#if defined(__aarch64__)
#define PLAIN_REGISTERS 32
#else
#define PLAIN_REGISTERS 16
#endif

#define VARIANT bf128
#define TARGET
#define LANES 4
#define REGISTERS PLAIN_REGISTERS
#define BF16 1
#define DOT 0
#include BODY

#define VARIANT f128
#define TARGET
#define LANES 4
#define REGISTERS PLAIN_REGISTERS
#define BF16 0
#define DOT 0
#include BODY

typedef void Work(void *);
typedef void Parallel(Work *, void *, unsigned, unsigned);

static Work *const by_level[4][2] = {
    {work_f128, work_bf128},
#if defined(__x86_64__)
    {work_f256, work_bf256},
    {work_f512, work_bf512},
    {work_f512, work_dot512},
#endif
};
