/* Instruction sets that are chosen at run time, and what the compiler needs for them. */

#ifndef VQFORMAT_INSTRUCTION_SETS_H
#define VQFORMAT_INSTRUCTION_SETS_H

enum { SCALAR, AVX2, AVX512, N_INSTRUCTION_SETS };

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(_MSC_VER))
#define HAS_X86
#include <immintrin.h>
#if defined(__GNUC__)
#define TARGET_AVX2 __attribute__((target("avx2,fma,popcnt")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,popcnt")))
#else
#define TARGET_AVX2
#define TARGET_AVX512
#endif
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define ALWAYS_INLINE __forceinline
#else
#define ALWAYS_INLINE inline
#endif

#endif
