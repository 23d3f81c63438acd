/* Passes over arrays. */

#include "arrays.h"

#include "instruction_sets.h"

enum { LANES = 16, PIECE = 1 << 16 };

void sum_errors(int64_t n_rows, int64_t n_columns, const float *points, const int16_t *indices, const uint8_t *books,
                const float *factors, float *sums)
{
    for (int64_t row = 0; row < n_rows; row++) {
        const float factor = factors ? factors[row] : 1.0f; /* a product by 1 changes nothing */
        for (int64_t column = 0; column < n_columns; column++) {
            const int64_t at = row * n_columns + column;
            const float error = (points[at] - (float)(2 * indices[at] + books[at])) * factor;
            sums[column] += error;
        }
    }
}

/* Every LANES-th value is added to one of LANES sums, first within pieces. */
static ALWAYS_INLINE void sum_lanes(const float *values, int64_t n, int are_squared, double *sums)
{
    for (int64_t start = 0; start < n; start += PIECE) {
        const float *piece = values + start;
        const int64_t size = n - start < PIECE ? n - start : PIECE, whole = size / LANES * LANES;
        double of_piece[LANES] = {0};
        for (int64_t i = 0; i < whole; i += LANES)
            for (int k = 0; k < LANES; k++)
                of_piece[k] += are_squared ? (double)piece[i + k] * (double)piece[i + k] : (double)piece[i + k];
        for (int64_t i = whole; i < size; i++)
            of_piece[i - whole] += are_squared ? (double)piece[i] * (double)piece[i] : (double)piece[i];
        for (int k = 0; k < LANES; k++)
            sums[k] += of_piece[k];
    }
}

static void sum_scalar(const float *values, int64_t n, int are_squared, double *sums)
{
    if (are_squared)
        sum_lanes(values, n, 1, sums);
    else
        sum_lanes(values, n, 0, sums);
}

#ifdef HAS_X86
TARGET_AVX2 static void sum_avx2(const float *values, int64_t n, int are_squared, double *sums)
{
    if (are_squared)
        sum_lanes(values, n, 1, sums);
    else
        sum_lanes(values, n, 0, sums);
}
#endif

void sum_values(const float *values, int64_t n, int are_squared, double *sums, int instruction_set)
{
#ifdef HAS_X86
    if (instruction_set != SCALAR) {
        sum_avx2(values, n, are_squared, sums);
        return;
    }
#endif
    (void)instruction_set;
    sum_scalar(values, n, are_squared, sums);
}
