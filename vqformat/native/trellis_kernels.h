/* The kernels of a trellis stage for each instruction set; for trellis.c only. */

#ifndef VQFORMAT_TRELLIS_KERNELS_H
#define VQFORMAT_TRELLIS_KERNELS_H

#include "trellis_steps.h"
#ifdef HAS_X86
#include "trellis_vectors.h"
#endif

/* The eight kernels of an instruction set: by whether slots are wide, there is a book, there is a trellis. */
#define KERNEL(set, attributes, w, b, t)                                                                              \
    attributes static void set##_##w##b##t(Lanes *l, const Run *run) { run_##set(l, run, step_##w##b##t, w, b, t); }
#define KERNELS(set, attributes)                                                                                      \
    KERNEL(set, attributes, 0, 0, 0) KERNEL(set, attributes, 0, 0, 1) KERNEL(set, attributes, 0, 1, 0)                \
    KERNEL(set, attributes, 0, 1, 1) KERNEL(set, attributes, 1, 0, 0) KERNEL(set, attributes, 1, 0, 1)                \
    KERNEL(set, attributes, 1, 1, 0) KERNEL(set, attributes, 1, 1, 1)
#define NAMES(set) {set##_000, set##_001, set##_010, set##_011, set##_100, set##_101, set##_110, set##_111}

KERNELS(scalar, )
#ifdef HAS_X86
KERNELS(avx2, TARGET_AVX2)
KERNELS(avx512, TARGET_AVX512)
static Steps *const STEPS[N_INSTRUCTION_SETS][8] = {NAMES(scalar), NAMES(avx2), NAMES(avx512)};
#else
static Steps *const STEPS[N_INSTRUCTION_SETS][8] = {NAMES(scalar), NAMES(scalar), NAMES(scalar)};
#endif

#endif
