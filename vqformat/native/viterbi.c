/* Trellis-coded quantization: the path with the least cost (Viterbi 1967).

   LANES sequences are searched side by side, so that all of them make the same transitions. Sums and products are
   those of the twin, in the same order and precision, so the paths are the same, ties included. */

#include "viterbi.h"

#include <math.h>
#include <stdlib.h>

#include "instruction_sets.h"

enum { LANES = 16, MAX_STATES = 256, N_SUBSETS = 4, CACHE_LINE = 64 }; /* the costs of a state fill a line */
static const float FORBIDDEN = 1e30f;

/* LANES sequences: the costs of the paths into each state, and what belongs to one step. */
typedef struct {
    const Search *search;
    int64_t first; /* number of the first sequence */
    int n;         /* of the lanes that are sequences; the others repeat the last one */
    float cost[2][MAX_STATES][LANES]; /* before and after a step, by turns */
    float metric[N_SUBSETS][LANES];
    float point[LANES], aim[LANES], weight[LANES]; /* of a step; the aim is the point within the range of indices */
    int32_t base[LANES];                           /* where the costs of index 0 of codebook 0 are */
} Lanes;

static ALWAYS_INLINE void load_step(Lanes *l, int64_t step)
{
    const Search *s = l->search;
    const int64_t at = step * s->n_sequences + l->first;
    const float furthest = (float)(2 * (s->reach - 2));
    for (int k = 0; k < l->n; k++) {
        l->point[k] = s->points[at + k];
        l->weight[k] = s->weights ? s->weights[at + k] : 1.0f; /* a product by 1 changes nothing */
        l->base[k] = s->reach + (s->contexts ? s->contexts[at + k] * 2 * (2 * s->reach + 1) : 0);
    }
    for (int k = l->n; k < LANES; k++)
        l->point[k] = l->point[l->n - 1], l->weight[k] = l->weight[l->n - 1], l->base[k] = l->base[l->n - 1];
    for (int k = 0; k < LANES; k++) {
        const float above = l->point[k] < -furthest ? -furthest : l->point[k];
        l->aim[k] = above > furthest ? furthest : above;
    }
}

/* The cost of an index of codebook ``q`` for the point of a lane. */
static ALWAYS_INLINE float cost_of(const Lanes *l, int k, int32_t index, int32_t q)
{
    const Search *s = l->search;
    const double difference = (double)l->point[k] - (double)(2 * index + q);
    int32_t at = l->base[k] + q * (2 * s->reach + 1) + index;
    at = at < 0 ? 0 : at;
    at = at >= s->n_costs ? (int32_t)s->n_costs - 1 : at;
    return (float)(difference * difference) * l->weight[k] + s->costs[at];
}

/* For each lane the point of its subset with the least cost: its cost and its index. The candidates are the nearest
   point of the subset and the next one towards 0. */
static ALWAYS_INLINE void cheapest(const Lanes *l, const int32_t *subset, float *best, int32_t *chosen)
{
    for (int k = 0; k < LANES; k++) {
        const int32_t q = subset[k] & 1;
        const int32_t nearest = (int32_t)rintf((l->aim[k] - (float)subset[k]) * 0.25f) * 4 + subset[k];
        const int32_t nearer = nearest - (nearest > 0 ? 4 : -4);
        const int32_t index = (nearest - q) >> 1, other = (nearer - q) >> 1;
        const float cost = cost_of(l, k, index, q), other_cost = cost_of(l, k, other, q);
        chosen[k] = other_cost < cost ? other : index;
        best[k] = other_cost < cost ? other_cost : cost;
    }
}

static ALWAYS_INLINE void find_metrics(Lanes *l, int64_t step)
{
    load_step(l, step);
    for (int32_t subset = 0; subset < N_SUBSETS; subset++) {
        int32_t subsets[LANES], chosen[LANES];
        for (int k = 0; k < LANES; k++)
            subsets[k] = subset;
        cheapest(l, subsets, l->metric[subset], chosen);
    }
}

/* One step of all paths. ``takes_second`` has a bit for each lane: whether the path into a state comes from its second
   predecessor. */
static ALWAYS_INLINE void advance_scalar(Lanes *l, int64_t step, uint16_t *takes_second)
{
    const int n = l->search->n_states;
    float(*const from)[LANES] = l->cost[step & 1], (*const to)[LANES] = l->cost[~step & 1];
    const int32_t *before = l->search->before, *subsets = l->search->subsets;
    for (int t = 0; t < n; t++) {
        const float *first = from[before[t]], *second = from[before[n + t]];
        const float *of_first = l->metric[subsets[t]], *of_second = l->metric[subsets[n + t]];
        unsigned set = 0;
        for (int k = 0; k < LANES; k++) {
            const float a = first[k] + of_first[k], b = second[k] + of_second[k];
            set |= (unsigned)(b < a) << k;
            to[t][k] = b < a ? b : a;
        }
        takes_second[t] = (uint16_t)set;
    }
}

#ifdef HAS_X86
TARGET_AVX2 static ALWAYS_INLINE void advance_avx2(Lanes *l, int64_t step, uint16_t *takes_second)
{
    const int n = l->search->n_states;
    float(*const from)[LANES] = l->cost[step & 1], (*const to)[LANES] = l->cost[~step & 1];
    const int32_t *before = l->search->before, *subsets = l->search->subsets;
    for (int t = 0; t < n; t++) {
        const float *first = from[before[t]], *second = from[before[n + t]];
        const float *of_first = l->metric[subsets[t]], *of_second = l->metric[subsets[n + t]];
        unsigned set = 0;
        for (int k = 0; k < LANES; k += 8) {
            const __m256 a = _mm256_add_ps(_mm256_loadu_ps(first + k), _mm256_loadu_ps(of_first + k));
            const __m256 b = _mm256_add_ps(_mm256_loadu_ps(second + k), _mm256_loadu_ps(of_second + k));
            set |= (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(b, a, _CMP_LT_OQ)) << k;
            _mm256_storeu_ps(to[t] + k, _mm256_min_ps(b, a));
        }
        takes_second[t] = (uint16_t)set;
    }
}

TARGET_AVX512 static ALWAYS_INLINE void advance_avx512(Lanes *l, int64_t step, uint16_t *takes_second)
{
    const int n = l->search->n_states;
    float(*const from)[LANES] = l->cost[step & 1], (*const to)[LANES] = l->cost[~step & 1];
    const int32_t *before = l->search->before, *subsets = l->search->subsets;
    for (int t = 0; t < n; t++) {
        const __m512 a = _mm512_add_ps(_mm512_loadu_ps(from[before[t]]), _mm512_loadu_ps(l->metric[subsets[t]]));
        const __m512 b =
            _mm512_add_ps(_mm512_loadu_ps(from[before[n + t]]), _mm512_loadu_ps(l->metric[subsets[n + t]]));
        takes_second[t] = (uint16_t)_mm512_cmp_ps_mask(b, a, _CMP_LT_OQ);
        _mm512_storeu_ps(to[t], _mm512_min_ps(b, a));
    }
}
#endif

/* The best path of LANES sequences, traced back from its end. */
static ALWAYS_INLINE void trace_back(Lanes *l, const uint16_t *takes_second)
{
    const Search *s = l->search;
    const int n = s->n_states;
    float(*const cost_at_end)[LANES] = l->cost[s->n_steps & 1];
    int state[LANES];
    for (int k = 0; k < LANES; k++) {
        state[k] = 0;
        for (int t = 1; t < n; t++)
            if (cost_at_end[t][k] < cost_at_end[state[k]][k])
                state[k] = t;
        if (k < l->n)
            s->end[l->first + k] = (uint8_t)state[k];
    }
    for (int64_t step = s->n_steps - 1; step >= 0; step--) {
        int32_t subset[LANES], index[LANES];
        float cost[LANES];
        for (int k = 0; k < LANES; k++) {
            const int way = (takes_second[step * n + state[k]] >> k & 1 ? n : 0) + state[k];
            subset[k] = s->subsets[way];
            state[k] = s->before[way];
        }
        load_step(l, step);
        cheapest(l, subset, cost, index);
        for (int k = 0; k < l->n; k++) {
            s->indices[step * s->n_sequences + l->first + k] = index[k];
            s->books[step * s->n_sequences + l->first + k] = (uint8_t)(subset[k] & 1);
        }
    }
}

#define SEARCH(set, target)                                                                                           \
    target static void search_##set(Lanes *l, uint16_t *takes_second)                                                 \
    {                                                                                                                 \
        const Search *s = l->search;                                                                                  \
        for (int64_t step = 0; step < s->n_steps; step++) {                                                           \
            find_metrics(l, step);                                                                                    \
            advance_##set(l, step, takes_second + step * s->n_states);                                                                                                      \
        }                                                                                                             \
        trace_back(l, takes_second);                                                                                  \
    }

SEARCH(scalar, )
#ifdef HAS_X86
SEARCH(avx2, TARGET_AVX2)
SEARCH(avx512, TARGET_AVX512)
static void (*const SEARCHES[])(Lanes *, uint16_t *) = {search_scalar, search_avx2, search_avx512};
#else
static void (*const SEARCHES[])(Lanes *, uint16_t *) = {search_scalar, search_scalar, search_scalar};
#endif

int viterbi_search(const Search *s, int instruction_set)
{
    uint16_t *takes_second = malloc((size_t)(s->n_steps * s->n_states) * sizeof *takes_second + 1);
    void *memory = malloc(sizeof(Lanes) + CACHE_LINE);
    Lanes *l = (Lanes *)(((uintptr_t)memory + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    const int has_memory = takes_second && memory;
    for (int64_t first = 0; has_memory && first < s->n_sequences; first += LANES) {
        l->search = s, l->first = first;
        l->n = (int)(s->n_sequences - first < LANES ? s->n_sequences - first : LANES);
        for (int t = 0; t < s->n_states; t++)
            for (int k = 0; k < LANES; k++) {
                const int start = s->start ? s->start[first + (k < l->n ? k : l->n - 1)] : 0;
                l->cost[0][t][k] = t == start ? 0.0f : FORBIDDEN;
            }
        SEARCHES[instruction_set](l, takes_second);
    }
    free(takes_second), free(memory);
    return !has_memory;
}
