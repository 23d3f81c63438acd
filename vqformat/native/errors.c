/* Errors of quantized values. */

#include "errors.h"

void sum_errors(int64_t n_rows, int64_t n_columns, const float *points, const int16_t *indices, const uint8_t *books,
                const float *factors, float *sums)
{
    for (int64_t row = 0; row < n_rows; row++) {
        const float factor = factors ? factors[row] : 1.0f; /* a product by 1 changes nothing */
        for (int64_t column = 0; column < n_columns; column++) {
            const int64_t at = row * n_columns + column;
            const float error = (points[at] - (float)(2 * indices[at] + books[at])) * factor;
            sums[column] = row ? sums[column] + error : error;
        }
    }
}
