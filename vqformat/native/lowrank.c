/* The values of a low-rank stage (SPEC 11): a product of integer matrices, times scales.

   Some vectors of ROWS rows are computed together, in registers. Parts are done row by row, as memory lies. */

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
/* ``n`` vectors of ROWS rows from ``column`` on. A fused multiplication and addition is exact here too. */
#define PART(set, target, vector, lanes, most, zero, load, store, all, add, multiply, fused)                           \
    target static ALWAYS_INLINE void part_##set(const LowRankBlock *b, int64_t row, int64_t column, int n)             \
    {                                                                                                                  \
        const float *left = b->left + row * b->rank, *right = b->right + column, *by_column = b->column_scales;        \
        const float *const row_scales = b->row_scales + row;                                                           \
        const int64_t rank = b->rank, n_columns = b->n_columns;                                                        \
        const int adds = b->adds;                                                                                      \
        float *out = b->out + row * n_columns + column;                                                                \
        vector sums[ROWS][most];                                                                                       \
        for (int i = 0; i < ROWS; i++)                                                                                 \
            for (int v = 0; v < n; v++)                                                                                \
                sums[i][v] = zero();                                                                                   \
        for (int64_t k = 0; k < rank; k++, right += n_columns) {                                                       \
            vector of_rows[ROWS];                                                                                      \
            for (int i = 0; i < ROWS; i++)                                                                             \
                of_rows[i] = all(left[i * rank + k]);                                                                  \
            for (int v = 0; v < n; v++) {                                                                              \
                const vector of_columns = load(right + lanes * v);                                                     \
                for (int i = 0; i < ROWS; i++)                                                                         \
                    sums[i][v] = fused(of_rows[i], of_columns, sums[i][v]);                                            \
            }                                                                                                          \
        }                                                                                                              \
        for (int i = 0; i < ROWS; i++, out += n_columns) {                                                             \
            const vector scale = all(row_scales[i]);                                                                   \
            for (int v = 0; v < n; v++) {                                                                              \
                vector value = multiply(sums[i][v], scale);                                                            \
                if (by_column)                                                                                         \
                    value = multiply(value, load(by_column + column + lanes * v));                                     \
                store(out + lanes * v, adds ? add(load(out + lanes * v), value) : value);                              \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    target static int64_t rows_##set(const LowRankBlock *b, int64_t row)                                               \
    {                                                                                                                  \
        const int are_whole = row + ROWS <= b->n_rows;                                                                 \
        int64_t column = 0;                                                                                            \
        for (; are_whole && column + most * lanes <= b->n_columns; column += most * lanes)                             \
            part_##set(b, row, column, most);                                                                          \
        for (; are_whole && column + lanes <= b->n_columns; column += lanes)                                           \
            part_##set(b, row, column, 1);                                                                             \
        return column;                                                                                                 \
    }

PART(avx2, TARGET_AVX2, __m256, 8, 2, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps,
     _mm256_add_ps, _mm256_mul_ps, _mm256_fmadd_ps)
PART(avx512, TARGET_AVX512, __m512, 16, 4, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
     _mm512_add_ps, _mm512_mul_ps, _mm512_fmadd_ps)
#endif

void lowrank_decode(const LowRankBlock *b, int instruction_set)
{
    for (int64_t r = 0; r < b->n_rows; r += ROWS) {
        int64_t columns = 0; /* those that vectors have done */
#ifdef HAS_X86
        if (instruction_set != SCALAR)
            columns = (instruction_set == AVX2 ? rows_avx2 : rows_avx512)(b, r);
#else
        (void)instruction_set;
#endif
        part_scalar(b, r, r + ROWS < b->n_rows ? r + ROWS : b->n_rows, columns, b->n_columns);
    }
}
