/* Transposing a square of floats. */

#ifndef VQFORMAT_TRANSPOSE_H
#define VQFORMAT_TRANSPOSE_H

#include <stdint.h>

enum { SIDE = 16 }; /* of a square: a row is a cache line */

/* Rows of ``values`` are ``stride`` floats apart. */
typedef void Transpose(const float *values, int64_t stride, float (*out)[SIDE]);

/* The function for an instruction set. */
Transpose *transposer(int instruction_set);

#endif
