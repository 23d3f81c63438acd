/* Passes over arrays (the twins: vqformat/encode/sums.py, and _sum_errors in vqformat/encode/small/coder.py). */

#ifndef VQFORMAT_ARRAYS_H
#define VQFORMAT_ARRAYS_H

#include <stdint.h>

/* Add the errors of columns to sums: ``points - (2 * index + book)``, each times the factor of its row.

   ``points``, ``indices`` and ``books`` are (n_rows, n_columns); ``factors`` has n_rows of them, or is NULL: all are 1;
   ``sums`` has n_columns. Rows are added one after another, in float32. */
void sum_errors(int64_t n_rows, int64_t n_columns, const float *points, const int16_t *indices, const uint8_t *books,
                const float *factors, float *sums);

/* Adds n values, or their squares, to the 16 sums of lanes, in float64, in the order of the twin. */
void sum_values(const float *values, int64_t n, int are_squared, double *sums, int instruction_set);

#endif
