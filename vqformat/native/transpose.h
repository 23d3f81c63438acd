/* Transposing a square of floats. */

#ifndef VQFORMAT_TRANSPOSE_H
#define VQFORMAT_TRANSPOSE_H

#include <stdint.h>

enum { SIDE = 16 }; /* of a square: a row is a cache line */

/* Rows of ``values`` are ``stride`` floats apart. */
typedef void Transpose(const float *values, int64_t stride, float (*out)[SIDE]);

/* The function for an instruction set. */
Transpose *transposer(int instruction_set);

/* Put the first ``n`` rows of a square in their places, times ``scales`` and plus ``addends``, if these are not NULL.
   The square is changed. An addend may be in the place of its own row. */
typedef void PutRows(float (*rows)[SIDE], int n, const float *scales, const float *const *addends, float *const *places);

PutRows *row_putter(int instruction_set);

#endif
