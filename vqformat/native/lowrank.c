/* The values of a low-rank stage (SPEC 11): a product of integer matrices, times scales.

   Four rows and WIDTH columns are computed together, in registers. */

#include "lowrank.h"

#include "instruction_sets.h"

enum { ROWS = 4, WIDTH = 32 };

/* The value of one element from its sum. Products are rounded one by one. */
static ALWAYS_INLINE void put(const LowRankBlock *b, int64_t r, int64_t c, float sum)
{
    float value = sum * b->row_scales[r];
    if (b->column_scales)
        value *= b->column_scales[c];
    float *const out = b->out + r * b->n_columns + c;
    *out = b->adds ? *out + value : value;
}

static void part_scalar(const LowRankBlock *b, int64_t row, int64_t row_end, int64_t column, int64_t column_end)
{
    for (int64_t r = row; r < row_end; r++)
        for (int64_t from = column; from < column_end; from += WIDTH) {
            const int64_t n = column_end - from < WIDTH ? column_end - from : WIDTH;
            float sums[WIDTH] = {0};
            for (int64_t k = 0; k < b->rank; k++)
                for (int64_t j = 0; j < n; j++)
                    sums[j] += b->left[r * b->rank + k] * b->right[k * b->n_columns + from + j];
            for (int64_t j = 0; j < n; j++)
                put(b, r, from + j, sums[j]);
        }
}

#ifdef HAS_X86
/* ROWS rows and WIDTH columns. A fused multiplication and addition is exact here too. */
#define PART(set, target, vector, lanes, zero, load, store, all, add, multiply, fused)                                 \
    target static void part_##set(const LowRankBlock *b, int64_t row, int64_t column)                                  \
    {                                                                                                                  \
        vector sums[ROWS][WIDTH / lanes];                                                                              \
        for (int i = 0; i < ROWS; i++)                                                                                 \
            for (int v = 0; v < WIDTH / lanes; v++)                                                                    \
                sums[i][v] = zero();                                                                                   \
        const float *left = b->left + row * b->rank, *right = b->right + column;                                       \
        for (int64_t k = 0; k < b->rank; k++, right += b->n_columns)                                                   \
            for (int v = 0; v < WIDTH / lanes; v++) {                                                                  \
                const vector of_columns = load(right + lanes * v);                                                     \
                for (int i = 0; i < ROWS; i++)                                                                         \
                    sums[i][v] = fused(all(left[i * b->rank + k]), of_columns, sums[i][v]);                            \
            }                                                                                                          \
        for (int i = 0; i < ROWS; i++) {                                                                               \
            const vector scale = all(b->row_scales[row + i]);                                                          \
            float *out = b->out + (row + i) * b->n_columns + column;                                                   \
            for (int v = 0; v < WIDTH / lanes; v++, out += lanes) {                                                    \
                vector value = multiply(sums[i][v], scale);                                                            \
                if (b->column_scales)                                                                                  \
                    value = multiply(value, load(b->column_scales + column + lanes * v));                              \
                store(out, b->adds ? add(load(out), value) : value);                                                   \
            }                                                                                                          \
        }                                                                                                              \
    }

PART(avx2, TARGET_AVX2, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_add_ps,
     _mm256_mul_ps, _mm256_fmadd_ps)
PART(avx512, TARGET_AVX512, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
     _mm512_add_ps, _mm512_mul_ps, _mm512_fmadd_ps)
#endif

void lowrank_decode(const LowRankBlock *b, int instruction_set)
{
    int64_t rows = 0, columns = 0; /* those that vectors have done */
#ifdef HAS_X86
    if (instruction_set != SCALAR) {
        rows = b->n_rows / ROWS * ROWS, columns = b->n_columns / WIDTH * WIDTH;
        for (int64_t r = 0; r < rows; r += ROWS)
            for (int64_t c = 0; c < columns; c += WIDTH)
                (instruction_set == AVX2 ? part_avx2 : part_avx512)(b, r, c);
    }
#else
    (void)instruction_set;
#endif
    part_scalar(b, 0, rows, columns, b->n_columns);
    part_scalar(b, rows, b->n_rows, 0, b->n_columns);
}
