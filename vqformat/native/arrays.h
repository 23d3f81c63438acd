/* Passes over arrays. Their twins in vqformat/encode: sums.py; largest_magnitude in methods/layout.py; _sum_errors in
   small/coder.py; _errors_of_points in small/coded_tensor.py; _counts in small/trellis.py. */

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

/* Errors of n values at grid points: ``(2 * index + book) * step - value``. */
void find_errors(const float *values, int64_t n, const int16_t *indices, const uint8_t *books, float step,
                 float *errors, int instruction_set);

/* The largest magnitude of n values; NaN if one is NaN, and 0 if there are none. */
float largest_magnitude(const float *values, int64_t n, int instruction_set);

/* Counts n codes: ``counts`` is (n_contexts, 2, 2 * reach + 1). Returns 1 if an index or a context is out of range. */
int count_indices(const uint8_t *contexts, const uint8_t *books, const int32_t *indices, int64_t n, int64_t n_contexts,
                  int32_t reach, int64_t *counts);

#endif
