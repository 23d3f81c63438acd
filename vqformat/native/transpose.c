/* Transposing a square of floats. */

#include "transpose.h"

#include "instruction_sets.h"

static void transpose_scalar(const float *values, int64_t stride, float (*out)[SIDE])
{
    for (int c = 0; c < SIDE; c++)
        for (int r = 0; r < SIDE; r++)
            out[c][r] = values[r * stride + c];
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
#endif

Transpose *transposer(int instruction_set)
{
#ifdef HAS_X86
    if (instruction_set != SCALAR)
        return transpose_avx2;
#endif
    (void)instruction_set;
    return transpose_scalar;
}
