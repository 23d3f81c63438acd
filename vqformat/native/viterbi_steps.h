/* The steps of a Viterbi search over LANES sequences side by side, for each instruction set; see viterbi.c. */

#ifndef VQFORMAT_VITERBI_STEPS_H
#define VQFORMAT_VITERBI_STEPS_H

#include <math.h>

#include "instruction_sets.h"
#include "viterbi.h"

enum { LANES = 16, MAX_STATES = 256, N_SUBSETS = 4, CHUNK = 64, CACHE_LINE = 64 }; /* costs of a state fill a line */
static const float FORBIDDEN = 1e30f;

/* Two states that have the same two successors, and these. Each number is LANES times that of a state. */
typedef struct {
    uint16_t low, high;       /* the predecessors */
    uint16_t of_even, of_odd; /* the states after ``low`` and a code of this parity; reversed after ``high`` */
} Butterfly;

/* LANES sequences of equal size. Steps are loaded and stored CHUNK at a time, because the values of a sequence lie side
   by side in memory, and those of a step do not. */
typedef struct {
    float cost[2][MAX_STATES][LANES]; /* of the paths into each state, before and after a step, by turns */
    float metric[N_SUBSETS][LANES];   /* the least cost of a point of each subset */
    float points[CHUNK][LANES], weights[CHUNK][LANES];
    int32_t base[CHUNK][LANES]; /* where the costs of index 0 of codebook 0 are */
    int16_t indices[CHUNK][LANES];
    uint8_t books[CHUNK][LANES];
    int64_t at[CHUNK];                        /* what each step of the chunk adds to ``place`` */
    Butterfly butterflies[MAX_STATES / 2]; /* first those of codebook 0 */
    int32_t slots[MAX_STATES];             /* of each state in ``takes_second`` */
    int32_t ways[2][MAX_STATES];           /* for each state its first and its second predecessor, times N_SUBSETS; plus
                                              the subset of points of this transition, 2 * parity + q */
    const Search *search;
    int n;                               /* of the lanes that are sequences; the others repeat the last one */
    int64_t n_steps, width;              /* steps of a sequence, and columns of its tile */
    int64_t place[LANES];                /* the first element of each sequence */
    int64_t number[LANES];               /* of each sequence */
    uint16_t *takes_second;              /* (n_steps, n_states): a bit for each lane. Slots 2 i and 2 i + 1 are those of
                                            ``of_even`` and ``of_odd`` of butterfly i */
    int16_t (*chosen)[N_SUBSETS][LANES]; /* (n_steps,): the index of the best point of each subset */
} Lanes;

/* For each lane and subset the point with the least cost: its cost and its index. The candidates are the nearest point
   of the subset and the next one towards 0. Feedback may move points beyond the range of indices. */
static ALWAYS_INLINE void find_metrics_scalar(Lanes *l, int c, int16_t (*chosen)[LANES])
{
    const Search *s = l->search;
    const float furthest = (float)(2 * (s->reach - 2));
    const int32_t size = 2 * s->reach + 1;
    for (int k = 0; k < LANES; k++) {
        const float point = l->points[c][k], above = point > -furthest ? point : -furthest;
        const float aim = above < furthest ? above : furthest;
        for (int32_t subset = 0; subset < N_SUBSETS; subset++) {
            const int32_t q = subset & 1;
            const int32_t nearest = (int32_t)rintf((aim - (float)subset) * 0.25f) * 4 + subset;
            const int32_t nearer = nearest - (nearest > 0 ? 4 : -4);
            const int32_t index = (nearest - q) >> 1, other = (nearer - q) >> 1;
            const double off = (double)point - (double)nearest, other_off = (double)point - (double)nearer;
            float cost = (float)(off * off), other_cost = (float)(other_off * other_off);
            if (s->weights)
                cost *= l->weights[c][k], other_cost *= l->weights[c][k];
            const float *costs = s->costs + l->base[c][k] + q * size;
            cost += costs[index], other_cost += costs[other];
            chosen[subset][k] = (int16_t)(other_cost < cost ? other : index);
            l->metric[subset][k] = other_cost < cost ? other_cost : cost;
        }
    }
}

/* Vectors of four for every processor: compilers do not make them of a loop over the lanes of a state. */
#if defined(__GNUC__)
enum { PART = 4 };
typedef float Part __attribute__((vector_size(16), may_alias));
typedef int32_t Bits __attribute__((vector_size(16), may_alias));
static const Bits BITS = {1, 2, 4, 8};
static ALWAYS_INLINE Bits is_less(Part a, Part b) { return a < b; }
static ALWAYS_INLINE int32_t united(Bits bits) { return bits[0] | bits[1] | bits[2] | bits[3]; }
static ALWAYS_INLINE Part chosen_by(Bits is_second, Part first, Part second)
{
    return (Part)((is_second & (Bits)second) | (~is_second & (Bits)first));
}
#else
enum { PART = 1 };
typedef float Part;
typedef int32_t Bits;
static const Bits BITS = 1;
static Bits is_less(Part a, Part b) { return a < b ? -1 : 0; }
static int32_t united(Bits bits) { return bits; }
static Part chosen_by(Bits is_second, Part first, Part second) { return is_second ? second : first; }
#endif

/* One step of all paths, from the costs ``from`` to the costs ``to``. */
static ALWAYS_INLINE void advance_scalar(Lanes *l, const float *from, float *to, uint16_t *takes_second)
{
    const int n = l->search->n_states / 2;
    for (int i = 0; i < n; i++) {
        const Butterfly b = l->butterflies[i];
        const int q = i >= n / 2;
        Bits even = BITS ^ BITS, odd = even;
        for (int k = 0; k < LANES; k += PART) {
            const Part low = *(const Part *)(from + b.low + k), high = *(const Part *)(from + b.high + k);
            const Part of_even = *(const Part *)(l->metric[q] + k), of_odd = *(const Part *)(l->metric[2 + q] + k);
            const Part first = low + of_even, second = high + of_odd;
            const Part odd_first = low + of_odd, odd_second = high + of_even;
            const Bits is_second = is_less(second, first), is_odd_second = is_less(odd_second, odd_first);
            even |= is_second & BITS << k, odd |= is_odd_second & BITS << k;
            *(Part *)(to + b.of_even + k) = chosen_by(is_second, first, second);
            *(Part *)(to + b.of_odd + k) = chosen_by(is_odd_second, odd_first, odd_second);
        }
        takes_second[2 * i] = (uint16_t)united(even), takes_second[2 * i + 1] = (uint16_t)united(odd);
    }
}

/* One step back of all sequences, whose states are ``state``. */
static ALWAYS_INLINE void go_back_scalar(const Lanes *l, int32_t *state, const uint16_t *takes_second,
                                         const int16_t (*chosen)[LANES], int16_t *indices, uint8_t *books)
{
    for (int k = 0; k < LANES; k++) {
        const int32_t way = l->ways[takes_second[l->slots[state[k]]] >> k & 1][state[k]];
        state[k] = way / N_SUBSETS;
        indices[k] = chosen[way % N_SUBSETS][k];
        books[k] = way & 1;
    }
}

#ifdef HAS_X86
/* The squared distances of points, float64 in two halves, from points of the grid. */
TARGET_AVX2 static ALWAYS_INLINE __m256 squares_avx2(__m256d left, __m256d right, __m256i grid)
{
    left = _mm256_sub_pd(left, _mm256_cvtepi32_pd(_mm256_castsi256_si128(grid)));
    right = _mm256_sub_pd(right, _mm256_cvtepi32_pd(_mm256_extracti128_si256(grid, 1)));
    return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_mul_pd(right, right)), _mm256_cvtpd_ps(_mm256_mul_pd(left, left)));
}

TARGET_AVX2 static ALWAYS_INLINE void find_metrics_avx2(Lanes *l, int c, int16_t (*chosen)[LANES])
{
    const Search *s = l->search;
    const __m256 furthest = _mm256_set1_ps((float)(2 * (s->reach - 2)));
    const __m256 least = _mm256_sub_ps(_mm256_setzero_ps(), furthest), quarter = _mm256_set1_ps(0.25f);
    const __m256i zero = _mm256_setzero_si256(), four = _mm256_set1_epi32(4), size = _mm256_set1_epi32(2 * s->reach + 1);
    for (int k = 0; k < LANES; k += 8) {
        const __m256 point = _mm256_loadu_ps(l->points[c] + k);
        const __m256 aim = _mm256_min_ps(_mm256_max_ps(point, least), furthest);
        const __m256d left = _mm256_cvtps_pd(_mm256_castps256_ps128(point));
        const __m256d right = _mm256_cvtps_pd(_mm256_extractf128_ps(point, 1));
        const __m256i base = _mm256_loadu_si256((const __m256i *)(l->base[c] + k));
        for (int subset = 0; subset < N_SUBSETS; subset++) {
            const __m256i offset = _mm256_set1_epi32(subset), q = _mm256_set1_epi32(subset & 1);
            const __m256 rounded = _mm256_mul_ps(_mm256_sub_ps(aim, _mm256_set1_ps((float)subset)), quarter);
            const __m256i nearest = _mm256_add_epi32(_mm256_slli_epi32(_mm256_cvtps_epi32(rounded), 2), offset);
            const __m256i is_above = _mm256_cmpgt_epi32(nearest, zero);
            const __m256i towards = _mm256_sub_epi32(_mm256_xor_si256(four, is_above), is_above); /* 4, or -4 above 0 */
            const __m256i nearer = _mm256_add_epi32(nearest, towards);
            const __m256i index = _mm256_srai_epi32(_mm256_sub_epi32(nearest, q), 1);
            const __m256i other = _mm256_srai_epi32(_mm256_sub_epi32(nearer, q), 1);
            __m256 cost = squares_avx2(left, right, nearest), other_cost = squares_avx2(left, right, nearer);
            if (s->weights) {
                const __m256 weight = _mm256_loadu_ps(l->weights[c] + k);
                cost = _mm256_mul_ps(cost, weight), other_cost = _mm256_mul_ps(other_cost, weight);
            }
            const __m256i of_book = subset & 1 ? _mm256_add_epi32(base, size) : base;
            cost = _mm256_add_ps(cost, _mm256_i32gather_ps(s->costs, _mm256_add_epi32(of_book, index), 4));
            other_cost = _mm256_add_ps(other_cost, _mm256_i32gather_ps(s->costs, _mm256_add_epi32(of_book, other), 4));
            const __m256 is_other = _mm256_cmp_ps(other_cost, cost, _CMP_LT_OQ);
            const __m256i best = _mm256_blendv_epi8(index, other, _mm256_castps_si256(is_other));
            _mm256_storeu_ps(l->metric[subset] + k, _mm256_min_ps(other_cost, cost));
            _mm_storeu_si128((__m128i *)(chosen[subset] + k), _mm_packs_epi32(_mm256_castsi256_si128(best),
                                                                              _mm256_extracti128_si256(best, 1)));
        }
    }
}

TARGET_AVX2 static ALWAYS_INLINE void advance_avx2(Lanes *l, const float *from, float *to, uint16_t *takes_second)
{
    const int n = l->search->n_states / 4;
    const Butterfly *butterflies = l->butterflies;
    for (int q = 0; q < 2; q++) {
        const __m256 even0 = _mm256_loadu_ps(l->metric[q]), even8 = _mm256_loadu_ps(l->metric[q] + 8);
        const __m256 odd0 = _mm256_loadu_ps(l->metric[2 + q]), odd8 = _mm256_loadu_ps(l->metric[2 + q] + 8);
        for (int i = 0; i < n; i++) {
            const Butterfly b = butterflies[i];
            unsigned even = 0, odd = 0;
            for (int k = 0; k < LANES; k += 8) {
                const __m256 low = _mm256_loadu_ps(from + b.low + k), high = _mm256_loadu_ps(from + b.high + k);
                const __m256 of_even = k ? even8 : even0, of_odd = k ? odd8 : odd0;
                const __m256 first = _mm256_add_ps(low, of_even), second = _mm256_add_ps(high, of_odd);
                const __m256 odd_first = _mm256_add_ps(low, of_odd), odd_second = _mm256_add_ps(high, of_even);
                even |= (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(second, first, _CMP_LT_OQ)) << k;
                odd |= (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(odd_second, odd_first, _CMP_LT_OQ)) << k;
                _mm256_storeu_ps(to + b.of_even + k, _mm256_min_ps(second, first));
                _mm256_storeu_ps(to + b.of_odd + k, _mm256_min_ps(odd_second, odd_first));
            }
            takes_second[2 * i] = (uint16_t)even, takes_second[2 * i + 1] = (uint16_t)odd;
        }
        butterflies += n, takes_second += 2 * n;
    }
}

TARGET_AVX512 static ALWAYS_INLINE __m512 squares_avx512(__m512d left, __m512d right, __m512i grid)
{
    left = _mm512_sub_pd(left, _mm512_cvtepi32_pd(_mm512_castsi512_si256(grid)));
    right = _mm512_sub_pd(right, _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(grid, 1)));
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(_mm512_mul_pd(left, left))),
                              _mm512_cvtpd_ps(_mm512_mul_pd(right, right)), 1);
}

TARGET_AVX512 static ALWAYS_INLINE void find_metrics_avx512(Lanes *l, int c, int16_t (*chosen)[LANES])
{
    const Search *s = l->search;
    const __m512 furthest = _mm512_set1_ps((float)(2 * (s->reach - 2)));
    const __m512 least = _mm512_sub_ps(_mm512_setzero_ps(), furthest), quarter = _mm512_set1_ps(0.25f);
    const __m512i zero = _mm512_setzero_si512(), four = _mm512_set1_epi32(4);
    const __m512 point = _mm512_loadu_ps(l->points[c]), weight = _mm512_loadu_ps(l->weights[c]);
    const __m512 aim = _mm512_min_ps(_mm512_max_ps(point, least), furthest);
    const __m512d left = _mm512_cvtps_pd(_mm512_castps512_ps256(point));
    const __m512d right = _mm512_cvtps_pd(_mm512_extractf32x8_ps(point, 1));
    const __m512i base = _mm512_loadu_si512(l->base[c]);
    for (int subset = 0; subset < N_SUBSETS; subset++) {
        const __m512i offset = _mm512_set1_epi32(subset), q = _mm512_set1_epi32(subset & 1);
        const __m512 rounded = _mm512_mul_ps(_mm512_sub_ps(aim, _mm512_set1_ps((float)subset)), quarter);
        const __m512i nearest = _mm512_add_epi32(_mm512_slli_epi32(_mm512_cvtps_epi32(rounded), 2), offset);
        const __mmask16 is_above = _mm512_cmpgt_epi32_mask(nearest, zero);
        const __m512i nearer = _mm512_mask_sub_epi32(_mm512_add_epi32(nearest, four), is_above, nearest, four);
        const __m512i index = _mm512_srai_epi32(_mm512_sub_epi32(nearest, q), 1);
        const __m512i other = _mm512_srai_epi32(_mm512_sub_epi32(nearer, q), 1);
        __m512 cost = squares_avx512(left, right, nearest), other_cost = squares_avx512(left, right, nearer);
        if (s->weights)
            cost = _mm512_mul_ps(cost, weight), other_cost = _mm512_mul_ps(other_cost, weight);
        const float *costs = s->costs + (subset & 1 ? 2 * s->reach + 1 : 0);
        cost = _mm512_add_ps(cost, _mm512_i32gather_ps(_mm512_add_epi32(base, index), costs, 4));
        other_cost = _mm512_add_ps(other_cost, _mm512_i32gather_ps(_mm512_add_epi32(base, other), costs, 4));
        const __mmask16 is_other = _mm512_cmp_ps_mask(other_cost, cost, _CMP_LT_OQ);
        const __m512i best = _mm512_mask_blend_epi32(is_other, index, other);
        _mm512_storeu_ps(l->metric[subset], _mm512_min_ps(other_cost, cost));
        _mm256_storeu_si256((__m256i *)chosen[subset], _mm512_cvtepi32_epi16(best));
    }
}

TARGET_AVX512 static ALWAYS_INLINE void advance_avx512(Lanes *l, const float *from, float *to, uint16_t *takes_second)
{
    const int n = l->search->n_states / 4;
    const Butterfly *butterflies = l->butterflies;
    for (int q = 0; q < 2; q++) {
        const __m512 of_even = _mm512_loadu_ps(l->metric[q]), of_odd = _mm512_loadu_ps(l->metric[2 + q]);
        for (int i = 0; i < n; i++) {
            const Butterfly b = butterflies[i];
            const __m512 low = _mm512_loadu_ps(from + b.low), high = _mm512_loadu_ps(from + b.high);
            const __m512 first = _mm512_add_ps(low, of_even), second = _mm512_add_ps(high, of_odd);
            const __m512 odd_first = _mm512_add_ps(low, of_odd), odd_second = _mm512_add_ps(high, of_even);
            takes_second[2 * i] = (uint16_t)_mm512_cmp_ps_mask(second, first, _CMP_LT_OQ);
            takes_second[2 * i + 1] = (uint16_t)_mm512_cmp_ps_mask(odd_second, odd_first, _CMP_LT_OQ);
            _mm512_storeu_ps(to + b.of_even, _mm512_min_ps(second, first));
            _mm512_storeu_ps(to + b.of_odd, _mm512_min_ps(odd_second, odd_first));
        }
        butterflies += n, takes_second += 2 * n;
    }
}

TARGET_AVX512 static ALWAYS_INLINE void go_back_avx512(const Lanes *l, int32_t *state, const uint16_t *takes_second,
                                                       const int16_t (*chosen)[LANES], int16_t *indices, uint8_t *books)
{
    const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i three = _mm512_set1_epi32(N_SUBSETS - 1), one = _mm512_set1_epi32(1);
    const __m512i at = _mm512_loadu_si512(state);
    const __m512i bits = _mm512_i32gather_epi32(_mm512_i32gather_epi32(at, l->slots, 4), takes_second, 2);
    const __m512i is_second = _mm512_and_si512(_mm512_srlv_epi32(bits, numbers), one);
    const __m512i place = _mm512_add_epi32(at, _mm512_mullo_epi32(is_second, _mm512_set1_epi32(MAX_STATES)));
    const __m512i way = _mm512_i32gather_epi32(place, l->ways[0], 4);
    const __m512i subset = _mm512_and_si512(way, three);
    const __m512i index = _mm512_i32gather_epi32(_mm512_add_epi32(_mm512_slli_epi32(subset, 4), numbers), chosen, 2);
    _mm512_storeu_si512(state, _mm512_srli_epi32(way, 2));
    _mm256_storeu_si256((__m256i *)indices, _mm512_cvtepi32_epi16(index));
    _mm_storeu_si128((__m128i *)books, _mm512_cvtepi32_epi8(_mm512_and_si512(way, one)));
}
#endif

#endif
