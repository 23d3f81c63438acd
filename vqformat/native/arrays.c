/* Passes over arrays. */

#include "arrays.h"

#include <string.h>

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

static ALWAYS_INLINE void find_errors_of(const float *values, int64_t n, const int16_t *indices, const uint8_t *books,
                                         float step, float *errors)
{
    for (int64_t i = 0; i < n; i++) {
        const float decoded = (float)(2 * indices[i] + books[i]) * step;
        errors[i] = decoded - values[i];
    }
}

/* Without the sign, the bits of floats are integers of the same order, those of NaN above all others. */
static ALWAYS_INLINE float largest_of(const float *values, int64_t n)
{
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        bits &= INT32_MAX;
        most = bits > most ? bits : most;
    }
    float found;
    memcpy(&found, &most, sizeof found);
    return found;
}

static void find_errors_scalar(const float *values, int64_t n, const int16_t *indices, const uint8_t *books, float step,
                               float *errors)
{
    find_errors_of(values, n, indices, books, step, errors);
}

static float largest_scalar(const float *values, int64_t n) { return largest_of(values, n); }

#ifdef HAS_X86
TARGET_AVX2 static void find_errors_avx2(const float *values, int64_t n, const int16_t *indices, const uint8_t *books,
                                         float step, float *errors)
{
    find_errors_of(values, n, indices, books, step, errors);
}

TARGET_AVX2 static float largest_avx2(const float *values, int64_t n) { return largest_of(values, n); }
#endif

void find_errors(const float *values, int64_t n, const int16_t *indices, const uint8_t *books, float step,
                 float *errors, int instruction_set)
{
#ifdef HAS_X86
    if (instruction_set != SCALAR) {
        find_errors_avx2(values, n, indices, books, step, errors);
        return;
    }
#endif
    (void)instruction_set;
    find_errors_scalar(values, n, indices, books, step, errors);
}

float largest_magnitude(const float *values, int64_t n, int instruction_set)
{
#ifdef HAS_X86
    if (instruction_set != SCALAR)
        return largest_avx2(values, n);
#endif
    (void)instruction_set;
    return largest_scalar(values, n);
}

int count_indices(const uint8_t *contexts, const uint8_t *books, const int32_t *indices, int64_t n, int64_t n_contexts,
                  int32_t reach, int64_t *counts)
{
    const int64_t size = 2 * (int64_t)reach + 1;
    for (int64_t i = 0; i < n; i++) {
        if (contexts[i] >= n_contexts || books[i] > 1 || indices[i] < -reach || indices[i] > reach)
            return 1;
        counts[(2 * contexts[i] + books[i]) * size + indices[i] + reach]++;
    }
    return 0;
}
