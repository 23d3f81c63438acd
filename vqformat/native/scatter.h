/* Putting the values of a block in their places in the tensor (SPEC 7.2). */

#ifndef VQFORMAT_SCATTER_H
#define VQFORMAT_SCATTER_H

#include <stdint.h>

typedef struct {
    int64_t n_rows, n_columns;
    int itemsize;                 /* 1, 2, 4 or 8 bytes */
    const void *values;           /* (n_rows, n_columns) */
    const int64_t *row_places;    /* where each row begins in out, in elements */
    const int64_t *column_places; /* what each column adds to that; NULL: its number */
    const int32_t *columns;       /* of each of ``column_places``, which then ascend, for 4 bytes; NULL: in order */
    void *out;
} ScatterBlock;

void scatter(const ScatterBlock *block, int instruction_set);

/* The largest of ``n`` places; -1 if one is negative. NULL stands for the places 0 to n - 1. */
int64_t last_place(const int64_t *places, int64_t n);

/* Whether each of ``n`` rows begins one place after the row before it. */
int are_rows_beside(const int64_t *row_places, int64_t n);

#endif
