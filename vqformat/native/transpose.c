/* Transposing a square of floats, and putting its rows in their places. */

#include "transpose.h"

#include <string.h>

#include "instruction_sets.h"

static void transpose_scalar(const float *values, int64_t stride, float (*out)[SIDE])
{
    for (int c = 0; c < SIDE; c++)
        for (int r = 0; r < SIDE; r++)
            out[c][r] = values[r * stride + c];
}

static void put_rows_scalar(float (*rows)[SIDE], int n, const float *scales, const float *const *addends,
                            float *const *places)
{
    for (int k = 0; k < n; k++) {
        for (int j = 0; scales && j < SIDE; j++)
            rows[k][j] *= scales[k];
        for (int j = 0; addends && j < SIDE; j++)
            rows[k][j] += addends[k][j];
        memcpy(places[k], rows[k], sizeof rows[k]);
    }
}

#ifdef HAS_X86
/* Eight rows and columns. */
TARGET_AVX2
static ALWAYS_INLINE void transpose_eight(const float *values, int64_t stride, float (*out)[SIDE])
{
    __m256 a[8], b[4];
    for (int r = 0; r < 4; r++) { /* four columns of rows r and r + 4; then the other four */
        const float *one = values + r * stride, *other = one + 4 * stride;
        a[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(one)), _mm_loadu_ps(other), 1);
        a[r + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(one + 4)), _mm_loadu_ps(other + 4), 1);
    }
    for (int half = 0; half < 8; half += 4) {
        b[0] = _mm256_unpacklo_ps(a[half], a[half + 1]), b[1] = _mm256_unpackhi_ps(a[half], a[half + 1]);
        b[2] = _mm256_unpacklo_ps(a[half + 2], a[half + 3]), b[3] = _mm256_unpackhi_ps(a[half + 2], a[half + 3]);
        _mm256_storeu_ps(out[half], _mm256_shuffle_ps(b[0], b[2], 0x44));
        _mm256_storeu_ps(out[half + 1], _mm256_shuffle_ps(b[0], b[2], 0xEE));
        _mm256_storeu_ps(out[half + 2], _mm256_shuffle_ps(b[1], b[3], 0x44));
        _mm256_storeu_ps(out[half + 3], _mm256_shuffle_ps(b[1], b[3], 0xEE));
    }
}

TARGET_AVX2
static void transpose_avx2(const float *values, int64_t stride, float (*out)[SIDE])
{
    for (int r = 0; r < SIDE; r += 8)
        for (int c = 0; c < SIDE; c += 8)
            transpose_eight(values + r * stride + c, stride, (float(*)[SIDE])(out[c] + r));
}

/* The next lines of the places are asked for: they are written next, and too many for the processor to foresee. */
#define PUT_ROWS(set, target, vector, lanes, load, store, all, add, multiply)                                          \
    target static void put_rows_##set(float (*rows)[SIDE], int n, const float *scales, const float *const *addends,    \
                                      float *const *places)                                                            \
    {                                                                                                                  \
        for (int k = 0; k < n; k++) {                                                                                  \
            _mm_prefetch((const char *)places[k] + sizeof rows[k], _MM_HINT_T1);                                       \
            for (int j = 0; j < SIDE; j += lanes) {                                                                    \
                vector row = load(rows[k] + j);                                                                        \
                if (scales)                                                                                            \
                    row = multiply(row, all(scales[k]));                                                               \
                if (addends)                                                                                           \
                    row = add(row, load(addends[k] + j));                                                              \
                store(places[k] + j, row);                                                                             \
            }                                                                                                          \
        }                                                                                                              \
    }

PUT_ROWS(avx2, TARGET_AVX2, __m256, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_add_ps, _mm256_mul_ps)
PUT_ROWS(avx512, TARGET_AVX512, __m512, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_add_ps,
         _mm512_mul_ps)
#endif

PutRows *row_putter(int instruction_set)
{
#ifdef HAS_X86
    if (instruction_set != SCALAR)
        return instruction_set == AVX2 ? put_rows_avx2 : put_rows_avx512;
#endif
    (void)instruction_set;
    return put_rows_scalar;
}

Transpose *transposer(int instruction_set)
{
#ifdef HAS_X86
    if (instruction_set != SCALAR)
        return transpose_avx2;
#endif
    (void)instruction_set;
    return transpose_scalar;
}
