/* The codebook entry with the highest score for each vector.

   Each lane has a vector, and two registers of them are compared with one entry after another. */

#include "nearest.h"

#include <math.h>
#include <stdlib.h>

#include "instruction_sets.h"

/* For each type and instruction set: WIDTH lanes of values V and of numbers N, and what is done with them. ``better``
   replaces the best score of a lane, and its number, where the score is higher. ``second`` is the higher one of the
   second best score and of the lower one of the best and a new one. */

#ifdef HAS_X86
enum { WIDTH_avx2_f = 8, WIDTH_avx2_d = 4, WIDTH_avx512_f = 16, WIDTH_avx512_d = 8 };
typedef __m256 V_avx2_f;
typedef __m256d V_avx2_d;
typedef __m256i N_avx2_f, N_avx2_d;
typedef __m512 V_avx512_f;
typedef __m512d V_avx512_d;
typedef __m512i N_avx512_f, N_avx512_d;

#define X86(set, target, real, of_all, of_number, of_load, of_sum, prefix, suffix)                                    \
    target static ALWAYS_INLINE V_##set second_##set(V_##set second, V_##set best, V_##set score)                     \
    {                                                                                                                 \
        return prefix##_max_##suffix(second, prefix##_min_##suffix(best, score));                                     \
    }                                                                                                                 \
    target static ALWAYS_INLINE V_##set less_##set(V_##set a, V_##set b) { return prefix##_sub_##suffix(a, b); }      \
    target static ALWAYS_INLINE V_##set all_##set(real x) { return of_all(x); }                                       \
    target static ALWAYS_INLINE N_##set number_##set(int64_t n) { return of_number; }                                 \
    target static ALWAYS_INLINE V_##set load_##set(const real *p) { return of_load(p); }                              \
    target static ALWAYS_INLINE V_##set add_product_##set(V_##set sum, V_##set a, V_##set b) { return of_sum; }

#define BETTER_AVX2(set, suffix, cast)                                                                               \
    TARGET_AVX2 static ALWAYS_INLINE void better_##set(V_##set *best, N_##set *at, V_##set score, N_##set number)     \
    {                                                                                                                 \
        const V_##set is_better = _mm256_cmp_##suffix(score, *best, _CMP_GT_OQ);                                      \
        *best = _mm256_max_##suffix(score, *best);                                                                    \
        *at = _mm256_blendv_epi8(*at, number, cast(is_better));                                                       \
    }

#define BETTER_AVX512(set, suffix, mask, move)                                                                        \
    TARGET_AVX512 static ALWAYS_INLINE void better_##set(V_##set *best, N_##set *at, V_##set score, N_##set number)   \
    {                                                                                                                 \
        const mask is_better = _mm512_cmp_##suffix##_mask(score, *best, _CMP_GT_OQ);                                  \
        *best = _mm512_max_##suffix(score, *best);                                                                    \
        *at = move(*at, is_better, number);                                                                           \
    }

X86(avx2_f, TARGET_AVX2, float, _mm256_set1_ps, _mm256_set1_epi32((int)n), _mm256_loadu_ps,
    _mm256_add_ps(sum, _mm256_mul_ps(a, b)), _mm256, ps)
X86(avx2_d, TARGET_AVX2, double, _mm256_set1_pd, _mm256_set1_epi64x(n), _mm256_loadu_pd,
    _mm256_add_pd(sum, _mm256_mul_pd(a, b)), _mm256, pd)
X86(avx512_f, TARGET_AVX512, float, _mm512_set1_ps, _mm512_set1_epi32((int)n), _mm512_loadu_ps,
    _mm512_fmadd_ps(a, b, sum), _mm512, ps)
X86(avx512_d, TARGET_AVX512, double, _mm512_set1_pd, _mm512_set1_epi64(n), _mm512_loadu_pd,
    _mm512_fmadd_pd(a, b, sum), _mm512, pd)
BETTER_AVX2(avx2_f, ps, _mm256_castps_si256)
BETTER_AVX2(avx2_d, pd, _mm256_castpd_si256)
BETTER_AVX512(avx512_f, ps, __mmask16, _mm512_mask_mov_epi32)
BETTER_AVX512(avx512_d, pd, __mmask8, _mm512_mask_mov_epi64)

TARGET_AVX2 static ALWAYS_INLINE void store_avx2_f(V_avx2_f best, N_avx2_f at, float *top, int64_t *codes)
{
    int32_t numbers[8];
    _mm256_storeu_ps(top, best), _mm256_storeu_si256((__m256i *)numbers, at);
    for (int k = 0; k < 8; k++)
        codes[k] = numbers[k];
}
TARGET_AVX2 static ALWAYS_INLINE void store_avx2_d(V_avx2_d best, N_avx2_d at, double *top, int64_t *codes)
{
    _mm256_storeu_pd(top, best), _mm256_storeu_si256((__m256i *)codes, at);
}
TARGET_AVX512 static ALWAYS_INLINE void store_avx512_f(V_avx512_f best, N_avx512_f at, float *top, int64_t *codes)
{
    int32_t numbers[16];
    _mm512_storeu_ps(top, best), _mm512_storeu_si512(numbers, at);
    for (int k = 0; k < 16; k++)
        codes[k] = numbers[k];
}
TARGET_AVX512 static ALWAYS_INLINE void store_avx512_d(V_avx512_d best, N_avx512_d at, double *top, int64_t *codes)
{
    _mm512_storeu_pd(top, best), _mm512_storeu_si512(codes, at);
}

/* Compare 2 WIDTH vectors, whose components lie in ``columns``, (dim, 2 WIDTH), with all entries. */
#define COMPARE(set, target, real)                                                                                    \
    target static ALWAYS_INLINE void compare_##set(const real *columns, const real *entries, int64_t n_entries,       \
                                                   int64_t dim, int has_margins, real *top, int64_t *codes)           \
    {                                                                                                                 \
        V_##set best = all_##set((real)-INFINITY), other_best = best, second = best, other_second = best;             \
        N_##set at = number_##set(0), other_at = at;                                                                  \
        for (int64_t e = 0; e < n_entries; e++, entries += dim + 1) {                                                 \
            V_##set score = all_##set(entries[dim]), other = score;                                                   \
            for (int64_t d = 0; d < dim; d++) {                                                                       \
                const V_##set component = all_##set(entries[d]);                                                      \
                score = add_product_##set(score, component, load_##set(columns + 2 * d * WIDTH_##set));               \
                other = add_product_##set(other, component, load_##set(columns + (2 * d + 1) * WIDTH_##set));         \
            }                                                                                                         \
            if (has_margins) {                                                                                        \
                second = second_##set(second, best, score);                                                           \
                other_second = second_##set(other_second, other_best, other);                                         \
            }                                                                                                         \
            better_##set(&best, &at, score, number_##set(e));                                                         \
            better_##set(&other_best, &other_at, other, number_##set(e));                                             \
        }                                                                                                             \
        if (has_margins)                                                                                              \
            best = less_##set(best, second), other_best = less_##set(other_best, other_second);                       \
        store_##set(best, at, top, codes);                                                                            \
        store_##set(other_best, other_at, top + WIDTH_##set, codes + WIDTH_##set);                                    \
    }

#define SEARCH(name, set, target, real, has_margins)                                                                  \
    target static void name(const void *vectors, const void *entries, int64_t n, int64_t n_entries, int64_t dim,      \
                            int64_t stride, int64_t *codes, void *top, void *memory)                                  \
    {                                                                                                                 \
        const int64_t width = 2 * WIDTH_##set;                                                                        \
        real *const columns = memory, tops[2 * WIDTH_##set];                                                          \
        int64_t found[2 * WIDTH_##set];                                                                               \
        for (int64_t first = 0; first < n; first += width) {                                                          \
            const real *rows = (const real *)vectors + first * stride;                                                \
            const int64_t left = n - first < width ? n - first : width;                                               \
            for (int64_t k = 0; k < width; k++)                                                                       \
                for (int64_t d = 0; d < dim; d++)                                                                     \
                    columns[d * width + k] = rows[(k < left ? k : left - 1) * stride + d];                            \
            switch (dim) { /* a constant, so that the components stay in registers */                                 \
            case 1: compare_##set(columns, entries, n_entries, 1, has_margins, tops, found); break;                   \
            case 2: compare_##set(columns, entries, n_entries, 2, has_margins, tops, found); break;                   \
            case 3: compare_##set(columns, entries, n_entries, 3, has_margins, tops, found); break;                   \
            case 4: compare_##set(columns, entries, n_entries, 4, has_margins, tops, found); break;                   \
            case 8: compare_##set(columns, entries, n_entries, 8, has_margins, tops, found); break;                   \
            case 16: compare_##set(columns, entries, n_entries, 16, has_margins, tops, found); break;                 \
            default: compare_##set(columns, entries, n_entries, dim, has_margins, tops, found);                       \
            }                                                                                                         \
            for (int64_t k = 0; k < left; k++)                                                                        \
                codes[first + k] = found[k], ((real *)top)[first + k] = tops[k];                                      \
        }                                                                                                             \
    }

COMPARE(avx2_f, TARGET_AVX2, float)
COMPARE(avx2_d, TARGET_AVX2, double)
COMPARE(avx512_f, TARGET_AVX512, float)
COMPARE(avx512_d, TARGET_AVX512, double)
SEARCH(search_avx2_f, avx2_f, TARGET_AVX2, float, 0)
SEARCH(search_avx2_d, avx2_d, TARGET_AVX2, double, 0)
SEARCH(search_avx512_f, avx512_f, TARGET_AVX512, float, 0)
SEARCH(search_avx512_d, avx512_d, TARGET_AVX512, double, 0)
SEARCH(margins_avx2, avx2_f, TARGET_AVX2, float, 1)
SEARCH(margins_avx512, avx512_f, TARGET_AVX512, float, 1)
typedef void Search(const void *, const void *, int64_t, int64_t, int64_t, int64_t, int64_t *, void *, void *);
static Search *const SEARCHES[3][2] = { /* by NearestKind */
    {search_avx2_f, search_avx512_f}, {search_avx2_d, search_avx512_d}, {margins_avx2, margins_avx512}};
#endif

int find_nearest(const void *vectors, const void *entries, int64_t n, int64_t n_entries, int64_t dim, int64_t *codes,
                 void *top, NearestKind kind, int instruction_set)
{
    void *memory = malloc((size_t)dim * 2 * 16 * sizeof(double) + 1);
    if (!memory)
        return 1;
#ifdef HAS_X86
    SEARCHES[kind][instruction_set == AVX512](vectors, entries, n, n_entries, dim, dim + (kind != WITH_MARGINS), codes,
                                              top, memory);
#else
    (void)vectors, (void)entries, (void)n, (void)n_entries, (void)codes, (void)top, (void)kind;
    (void)instruction_set;
#endif
    free(memory);
    return 0;
}
