/* The values of a low-rank stage (SPEC 11), one block at a time. */

#ifndef VQFORMAT_LOWRANK_H
#define VQFORMAT_LOWRANK_H

#include <stdint.h>

/* All sums of products are integers of magnitude at most 2^24, so they are exact in any order. */
typedef struct {
    int64_t n_rows, n_columns, rank;
    const float *left;          /* (n_rows, rank), integers */
    const float *right;         /* (rank, n_columns), integers */
    const float *row_scales;    /* n_rows */
    const float *column_scales; /* n_columns, or NULL: all are 1 */
    int adds;                   /* whether the values are added to those in ``out`` */
    float *out;                 /* (n_rows, n_columns) */
} LowRankBlock;

void lowrank_decode(const LowRankBlock *block, int instruction_set);

#endif
