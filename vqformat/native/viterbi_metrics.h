/* The costs of the points that the steps of a Viterbi search may choose, for each instruction set; and what the parts
   of the search have in common.

   Costs of paths are int16, so a vector has those of many lanes. They cannot overflow: see MOST_COST. */

#ifndef VQFORMAT_VITERBI_METRICS_H
#define VQFORMAT_VITERBI_METRICS_H

#include <math.h>
#include <string.h>

#include "instruction_sets.h"
#include "viterbi.h"

/* Costs of a state fill a cache line. Each lane of a HALF has a bit of a decision. */
enum { LANES = 32, HALF = 16, HALVES = LANES / HALF, MAX_STATES = 256, N_SUBSETS = 4, CHUNK = 32, CACHE_LINE = 64 };
/* A step adds 0 to MOST_COST to the cost of a path, in units of 1 / RESOLUTION. A path leads from each of 2^8 states to
   each other one in 8 steps, so the costs of states differ by at most 8 * MOST_COST, or by that of a state in which no
   sequence starts, FORBIDDEN, and of 7 steps. */
enum { RESOLUTION = 64, MOST_COST = 2047, FORBIDDEN = 8 * MOST_COST + 1 };

/* Two states that have the same two successors, and these. Each number is LANES times that of a state. */
typedef struct {
    uint16_t low, high;       /* the predecessors */
    uint16_t of_even, of_odd; /* the states after ``low`` and a code of this parity; reversed after ``high`` */
} Butterfly;

/* LANES sequences of equal size. CHUNK steps are prepared at a time, lane by lane, because the values of a sequence lie
   side by side in memory, and those of a step do not. */
typedef struct {
    int16_t cost[2][MAX_STATES][LANES];        /* of the paths into each state, before and after a step, by turns; less
                                                  that of state 0 a step before */
    int16_t metric[CHUNK][N_SUBSETS][LANES];   /* the least cost of a point of each subset; less the least of all */
    int16_t by_lane[LANES][N_SUBSETS][CHUNK];  /* the same, before its axes are turned */
    uint8_t subset[CHUNK][LANES];              /* of the points that are chosen, 2 * parity + q */
    float points[LANES][CHUNK];                /* a chunk, if its steps are not together in memory; 0 after its end */
    float weights[LANES][CHUNK];
    uint8_t contexts[LANES][CHUNK];
    int64_t at[CHUNK];                         /* what each step of the chunk adds to ``place`` */
    int are_together;                          /* whether a chunk has CHUNK steps, side by side in memory */
    Butterfly butterflies[MAX_STATES / 2];     /* first those of codebook 0 */
    int32_t slots[MAX_STATES];                 /* of each state in ``takes_second`` */
    const Search *search;
    int32_t feedback, forward;                 /* the bits of both polynomials that a state has */
    int32_t highest;                           /* bit of ``forward``: of two predecessors the first is without it, when
                                                  it is shifted right by one */
    int n;                                     /* of the lanes that are sequences; the others are searched in vain */
    int64_t n_steps, width;                    /* steps of a sequence, and columns of its tile */
    int64_t place[LANES];                      /* the first element of each sequence */
    int64_t number[LANES];                     /* of each sequence */
    uint16_t *takes_second;                    /* (n_steps, n_states, HALVES): a bit for each lane. Slots 2 i and
                                                  2 i + 1 are those of ``of_even`` and ``of_odd`` of butterfly i */
    int16_t (*chosen)[N_SUBSETS][CHUNK];       /* (n_chunks, LANES): the index of the best point of each subset */
} Lanes;

/* Up to CHUNK steps of a sequence, side by side. */
typedef struct {
    const float *points, *weights;
    const uint8_t *contexts;
    int n;
} Chunk;

/* What some steps, from ``step`` on, add to the places of sequences. */
static void find_places(Lanes *l, int64_t step, int n)
{
    int64_t i = step / l->width, j = step % l->width;
    for (int c = 0; c < n; c++) {
        l->at[c] = i * l->search->n_columns + j;
        if (++j == l->width)
            i++, j = 0;
    }
    l->are_together = n == CHUNK && l->at[CHUNK - 1] - l->at[0] == CHUNK - 1;
}

/* Copy n elements of a sequence, or back. Most often they are side by side. */
#define COPY(n, at, to, from)                                                                                         \
    do {                                                                                                              \
        if ((at)[(n) - 1] - (at)[0] == (n) - 1)                                                                       \
            for (int64_t c = 0, place = (at)[0]; c < (n); c++, place++)                                               \
                to = from;                                                                                            \
        else                                                                                                          \
            for (int64_t c = 0, place; c < (n); c++)                                                                  \
                place = (at)[c], to = from;                                                                           \
    } while (0)

/* Find the places of a chunk of n steps of some lanes. Copy the steps if they are not together: vectors read CHUNK. */
static void load_chunk(Lanes *l, int64_t step, int n, int first_lane, int end_lane)
{
    const Search *s = l->search;
    find_places(l, step, n);
    if (l->are_together)
        return;
    if (n < CHUNK) {
        memset(l->points, 0, sizeof l->points), memset(l->weights, 0, sizeof l->weights);
        memset(l->contexts, 0, sizeof l->contexts);
    }
    for (int lane = first_lane; lane < end_lane; lane++) {
        const int64_t first = l->place[lane];
        COPY(n, l->at, l->points[lane][c], s->points[first + place]);
        if (s->weights)
            COPY(n, l->at, l->weights[lane][c], s->weights[first + place]);
        if (s->contexts)
            COPY(n, l->at, l->contexts[lane][c], s->contexts[first + place]);
    }
}

/* The chunk of n steps of a lane. */
static ALWAYS_INLINE Chunk chunk_of(const Lanes *l, int lane, int n)
{
    const Search *s = l->search;
    const int64_t at = l->place[lane] + l->at[0];
    const float *points = l->points[lane], *weights = s->weights ? l->weights[lane] : NULL;
    const uint8_t *contexts = s->contexts ? l->contexts[lane] : NULL;
    if (l->are_together) {
        points = s->points + at, weights = weights ? s->weights + at : NULL;
        contexts = contexts ? s->contexts + at : NULL;
    }
    return (Chunk){points, weights, contexts, n};
}

/* Turn the axes of 8 rows of 8 words. */
static ALWAYS_INLINE void turn_words(const int16_t *from, int64_t stride, int16_t *to, int64_t to_stride)
{
#ifdef HAS_X86
    __m128i a[8], b[8];
    for (int i = 0; i < 8; i++)
        a[i] = _mm_loadu_si128((const __m128i *)(from + i * stride));
    for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
    }
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm_unpacklo_epi16(b[i], b[i + 4]);
        a[2 * i + 1] = _mm_unpackhi_epi16(b[i], b[i + 4]);
    }
    for (int i = 0; i < 4; i++) {
        _mm_storeu_si128((__m128i *)(to + 2 * i * to_stride), _mm_unpacklo_epi16(a[i], a[i + 4]));
        _mm_storeu_si128((__m128i *)(to + (2 * i + 1) * to_stride), _mm_unpackhi_epi16(a[i], a[i + 4]));
    }
#else
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < 8; k++)
            to[k * to_stride + i] = from[i * stride + k];
#endif
}

/* Turn the axes of 8 rows of 8 bytes. */
static ALWAYS_INLINE void turn_bytes(const uint8_t *from, int64_t stride, uint8_t *to, int64_t to_stride)
{
#ifdef HAS_X86
    __m128i a[4], b[4];
    for (int i = 0; i < 4; i++)
        a[i] = _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)(from + i * stride)),
                                 _mm_loadl_epi64((const __m128i *)(from + (i + 4) * stride)));
    for (int i = 0; i < 2; i++) {
        b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 2]);
        b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 2]);
    }
    for (int i = 0; i < 2; i++) {
        a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 2]);
        a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 2]);
    }
    for (int i = 0; i < 4; i++) {
        _mm_storel_epi64((__m128i *)(to + 2 * i * to_stride), a[i]);
        _mm_storel_epi64((__m128i *)(to + (2 * i + 1) * to_stride), _mm_unpackhi_epi64(a[i], a[i]));
    }
#else
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < 8; k++)
            to[k * to_stride + i] = from[i * stride + k];
#endif
}

static unsigned highest_bit(unsigned bits)
{
    unsigned highest = 1;
    while (highest * 2 <= bits)
        highest *= 2;
    return highest;
}

/* For each step and subset the point with the least cost: its cost and its index. The candidates are the nearest point
   of the subset and the next one towards 0. Feedback may move points beyond the range of indices. */
static ALWAYS_INLINE void find_metrics_scalar(const Search *s, const Chunk *chunk, int16_t (*metric)[CHUNK],
                                              int16_t (*chosen)[CHUNK])
{
    const float furthest = (float)(2 * (s->reach - 2));
    const int32_t size = 2 * s->reach + 1;
    for (int k = 0; k < chunk->n; k++) {
        const int32_t base = s->reach + (chunk->contexts ? chunk->contexts[k] * 2 * size : 0);
        const float point = chunk->points[k], above = point > -furthest ? point : -furthest;
        const float aim = above < furthest ? above : furthest;
        float best[N_SUBSETS], least = 0.0f;
        for (int32_t subset = 0; subset < N_SUBSETS; subset++) {
            const int32_t q = subset & 1;
            const int32_t nearest = (int32_t)rintf((aim - (float)subset) * 0.25f) * 4 + subset;
            const int32_t nearer = nearest - (nearest > 0 ? 4 : -4);
            const int32_t index = (nearest - q) >> 1, other = (nearer - q) >> 1;
            const float off = point - (float)nearest, other_off = point - (float)nearer;
            float cost = off * off, other_cost = other_off * other_off;
            if (chunk->weights)
                cost *= chunk->weights[k], other_cost *= chunk->weights[k];
            const float *costs = s->costs + base + q * size;
            cost += costs[index], other_cost += costs[other];
            chosen[subset][k] = (int16_t)(other_cost < cost ? other : index);
            best[subset] = other_cost < cost ? other_cost : cost;
            least = subset == 0 || best[subset] < least ? best[subset] : least;
        }
        for (int subset = 0; subset < N_SUBSETS; subset++) {
            const float more = (best[subset] - least) * RESOLUTION;
            metric[subset][k] = (int16_t)rintf(more < MOST_COST ? more : MOST_COST);
        }
    }
}

#ifdef HAS_X86
TARGET_AVX2 static ALWAYS_INLINE void find_metrics_avx2(const Search *s, const Chunk *chunk,
                                                        int16_t (*metric)[CHUNK], int16_t (*chosen)[CHUNK])
{
    const __m256 furthest = _mm256_set1_ps((float)(2 * (s->reach - 2)));
    const __m256 least = _mm256_sub_ps(_mm256_setzero_ps(), furthest), quarter = _mm256_set1_ps(0.25f);
    const __m256 resolution = _mm256_set1_ps(RESOLUTION), most = _mm256_set1_ps(MOST_COST);
    const __m256i zero = _mm256_setzero_si256(), four = _mm256_set1_epi32(4);
    const __m256i size = _mm256_set1_epi32(2 * s->reach + 1);
    for (int k = 0; k < chunk->n; k += 8) {
        const __m256 point = _mm256_loadu_ps(chunk->points + k);
        const __m256 aim = _mm256_min_ps(_mm256_max_ps(point, least), furthest);
        __m256i base = _mm256_set1_epi32(s->reach);
        if (chunk->contexts) {
            const __m256i context = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(chunk->contexts + k)));
            base = _mm256_add_epi32(base, _mm256_mullo_epi32(context, _mm256_slli_epi32(size, 1)));
        }
        __m256 best[N_SUBSETS];
        for (int subset = 0; subset < N_SUBSETS; subset++) {
            const __m256i offset = _mm256_set1_epi32(subset), q = _mm256_set1_epi32(subset & 1);
            const __m256 rounded = _mm256_mul_ps(_mm256_sub_ps(aim, _mm256_set1_ps((float)subset)), quarter);
            const __m256i nearest = _mm256_add_epi32(_mm256_slli_epi32(_mm256_cvtps_epi32(rounded), 2), offset);
            const __m256i is_above = _mm256_cmpgt_epi32(nearest, zero);
            const __m256i towards = _mm256_sub_epi32(_mm256_xor_si256(four, is_above), is_above); /* 4, or -4 above 0 */
            const __m256i nearer = _mm256_add_epi32(nearest, towards);
            const __m256i index = _mm256_srai_epi32(_mm256_sub_epi32(nearest, q), 1);
            const __m256i other = _mm256_srai_epi32(_mm256_sub_epi32(nearer, q), 1);
            const __m256 off = _mm256_sub_ps(point, _mm256_cvtepi32_ps(nearest));
            const __m256 other_off = _mm256_sub_ps(point, _mm256_cvtepi32_ps(nearer));
            __m256 cost = _mm256_mul_ps(off, off), other_cost = _mm256_mul_ps(other_off, other_off);
            if (chunk->weights) {
                const __m256 weight = _mm256_loadu_ps(chunk->weights + k);
                cost = _mm256_mul_ps(cost, weight), other_cost = _mm256_mul_ps(other_cost, weight);
            }
            const __m256i of_book = subset & 1 ? _mm256_add_epi32(base, size) : base;
            cost = _mm256_add_ps(cost, _mm256_i32gather_ps(s->costs, _mm256_add_epi32(of_book, index), 4));
            other_cost = _mm256_add_ps(other_cost, _mm256_i32gather_ps(s->costs, _mm256_add_epi32(of_book, other), 4));
            const __m256 is_other = _mm256_cmp_ps(other_cost, cost, _CMP_LT_OQ);
            const __m256i choice = _mm256_blendv_epi8(index, other, _mm256_castps_si256(is_other));
            best[subset] = _mm256_min_ps(other_cost, cost);
            _mm_storeu_si128((__m128i *)(chosen[subset] + k), _mm_packs_epi32(_mm256_castsi256_si128(choice),
                                                                              _mm256_extracti128_si256(choice, 1)));
        }
        const __m256 of_all = _mm256_min_ps(_mm256_min_ps(best[0], best[1]), _mm256_min_ps(best[2], best[3]));
        for (int subset = 0; subset < N_SUBSETS; subset++) {
            const __m256 more = _mm256_mul_ps(_mm256_sub_ps(best[subset], of_all), resolution);
            const __m256i cost = _mm256_cvtps_epi32(_mm256_min_ps(more, most));
            _mm_storeu_si128((__m128i *)(metric[subset] + k), _mm_packs_epi32(_mm256_castsi256_si128(cost),
                                                                                 _mm256_extracti128_si256(cost, 1)));
        }
    }
}

TARGET_AVX512 static ALWAYS_INLINE void find_metrics_avx512(const Search *s, const Chunk *chunk,
                                                            int16_t (*metric)[CHUNK], int16_t (*chosen)[CHUNK])
{
    const __m512 furthest = _mm512_set1_ps((float)(2 * (s->reach - 2)));
    const __m512 least = _mm512_sub_ps(_mm512_setzero_ps(), furthest), quarter = _mm512_set1_ps(0.25f);
    const __m512 resolution = _mm512_set1_ps(RESOLUTION), most = _mm512_set1_ps(MOST_COST);
    const __m512i zero = _mm512_setzero_si512(), four = _mm512_set1_epi32(4);
    const __m512i size = _mm512_set1_epi32(2 * s->reach + 1);
    for (int k = 0; k < chunk->n; k += 16) {
        const __m512 point = _mm512_loadu_ps(chunk->points + k);
        const __m512 weight = _mm512_loadu_ps((chunk->weights ? chunk->weights : chunk->points) + k);
        const __m512 aim = _mm512_min_ps(_mm512_max_ps(point, least), furthest);
        __m512i base = _mm512_set1_epi32(s->reach);
        if (chunk->contexts) {
            const __m512i context = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(chunk->contexts + k)));
            base = _mm512_add_epi32(base, _mm512_mullo_epi32(context, _mm512_slli_epi32(size, 1)));
        }
        __m512 best[N_SUBSETS];
        for (int subset = 0; subset < N_SUBSETS; subset++) {
            const __m512i offset = _mm512_set1_epi32(subset), q = _mm512_set1_epi32(subset & 1);
            const __m512 rounded = _mm512_mul_ps(_mm512_sub_ps(aim, _mm512_set1_ps((float)subset)), quarter);
            const __m512i nearest = _mm512_add_epi32(_mm512_slli_epi32(_mm512_cvtps_epi32(rounded), 2), offset);
            const __mmask16 is_above = _mm512_cmpgt_epi32_mask(nearest, zero);
            const __m512i nearer = _mm512_mask_sub_epi32(_mm512_add_epi32(nearest, four), is_above, nearest, four);
            const __m512i index = _mm512_srai_epi32(_mm512_sub_epi32(nearest, q), 1);
            const __m512i other = _mm512_srai_epi32(_mm512_sub_epi32(nearer, q), 1);
            const __m512 off = _mm512_sub_ps(point, _mm512_cvtepi32_ps(nearest));
            const __m512 other_off = _mm512_sub_ps(point, _mm512_cvtepi32_ps(nearer));
            __m512 cost = _mm512_mul_ps(off, off), other_cost = _mm512_mul_ps(other_off, other_off);
            if (chunk->weights)
                cost = _mm512_mul_ps(cost, weight), other_cost = _mm512_mul_ps(other_cost, weight);
            const float *costs = s->costs + (subset & 1 ? 2 * s->reach + 1 : 0);
            cost = _mm512_add_ps(cost, _mm512_i32gather_ps(_mm512_add_epi32(base, index), costs, 4));
            other_cost = _mm512_add_ps(other_cost, _mm512_i32gather_ps(_mm512_add_epi32(base, other), costs, 4));
            const __mmask16 is_other = _mm512_cmp_ps_mask(other_cost, cost, _CMP_LT_OQ);
            const __m512i choice = _mm512_mask_blend_epi32(is_other, index, other);
            best[subset] = _mm512_min_ps(other_cost, cost);
            _mm256_storeu_si256((__m256i *)(chosen[subset] + k), _mm512_cvtepi32_epi16(choice));
        }
        const __m512 of_all = _mm512_min_ps(_mm512_min_ps(best[0], best[1]), _mm512_min_ps(best[2], best[3]));
        for (int subset = 0; subset < N_SUBSETS; subset++) {
            const __m512 more = _mm512_mul_ps(_mm512_sub_ps(best[subset], of_all), resolution);
            const __m512i cost = _mm512_cvtps_epi32(_mm512_min_ps(more, most));
            _mm256_storeu_si256((__m256i *)(metric[subset] + k), _mm512_cvtepi32_epi16(cost));
        }
    }
}
#endif

#endif
