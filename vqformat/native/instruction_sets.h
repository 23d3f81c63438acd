/* Instruction sets that are chosen at run time, and what the compiler needs for them. */

#ifndef VQFORMAT_INSTRUCTION_SETS_H
#define VQFORMAT_INSTRUCTION_SETS_H

enum { SCALAR, AVX2, AVX512, N_INSTRUCTION_SETS };

/* Other compilers get portable C: functions for a processor of their own are asked for as GCC and Clang do. */
#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2,fma,popcnt")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,popcnt")))
/* For what is faster still where a processor with AVX-512 has more: asked for where it is used. */
#define TARGET_VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,fma,popcnt")))
#define HAS_VBMI __builtin_cpu_supports("avx512vbmi")
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define PREFETCH_TO_READ(place) __builtin_prefetch(place)
#define PREFETCH_TO_WRITE(place) __builtin_prefetch(place, 1)
#elif defined(_MSC_VER)
#define ALWAYS_INLINE __forceinline
#define PREFETCH_TO_READ(place) ((void)(place))
#define PREFETCH_TO_WRITE(place) ((void)(place))
#else
#define ALWAYS_INLINE inline
#define PREFETCH_TO_READ(place) ((void)(place))
#define PREFETCH_TO_WRITE(place) ((void)(place))
#endif

#endif
