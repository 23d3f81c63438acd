/* Trellis-coded quantization: the path with the least cost (Viterbi 1967).

   LANES sequences are searched side by side, so that all of them make the same transitions. Sums and products are
   those of the twin, in the same order and precision, so the paths are the same, ties included. A few sequences that
   are left are searched one after another, with states side by side. */

#include "viterbi.h"

#include <stdlib.h>

#include "viterbi_labels.h"
#include "viterbi_steps.h"

/* Ask for the values of the next chunk, which most often follow: too many lanes for the processor to foresee. */
static void prefetch(const Search *s, int64_t place)
{
    for (int c = 0; c < CHUNK; c += CACHE_LINE / (int)sizeof(float)) {
        PREFETCH_TO_READ(s->points + place + c);
        if (s->weights)
            PREFETCH_TO_READ(s->weights + place + c);
    }
    if (s->contexts)
        PREFETCH_TO_READ(s->contexts + place);
}

static void load_chunk(Lanes *l, int64_t step, int n)
{
    const Search *s = l->search;
    const int32_t of_context = 2 * (2 * s->reach + 1);
    find_places(l, step, n);
    for (int k = 0; k < l->n_used; k++) {
        const float *points = s->points + l->place[k];
        prefetch(s, l->place[k] + l->at[n - 1] + 1);
        COPY(n, l->at, l->points[c][k], points[place]);
        if (s->weights) {
            const float *weights = s->weights + l->place[k];
            COPY(n, l->at, l->weights[c][k], weights[place]);
        }
        if (s->contexts) {
            const uint8_t *contexts = s->contexts + l->place[k];
            COPY(n, l->at, l->base[c][k], s->reach + contexts[place] * of_context);
        } else {
            for (int c = 0; c < n; c++)
                l->base[c][k] = s->reach;
        }
    }
}

static void store_chunk(Lanes *l, int64_t step, int n)
{
    find_places(l, step, n);
    for (int k = 0; k < l->n; k++) {
        int16_t *indices = l->search->indices + l->place[k];
        uint8_t *books = l->search->books + l->place[k];
        COPY(n, l->at, indices[place], l->indices[c][k]);
        COPY(n, l->at, books[place], l->books[c][k]);
    }
}

/* The states in which the best paths end. */
static void find_ends(const Lanes *l, int32_t *state)
{
    const int16_t(*const cost)[LANES] = (const int16_t(*)[LANES])l->cost[l->n_steps & 1];
    for (int k = 0; k < l->n_used; k++) {
        state[k] = 0;
        for (int t = 1; t < l->search->n_states; t++)
            if (cost[t][k] < cost[state[k]][k])
                state[k] = t;
        l->search->end[l->number[k]] = (uint8_t)state[k];
    }
}

/* The search from the first step to the last one; then the best path of each sequence is traced back from its end. */
#define SEARCH(set, target)                                                                                           \
    target static void search_##set(Lanes *l)                                                                         \
    {                                                                                                                 \
        const int n_bits = l->search->n_states * HALVES;                                                              \
        for (int64_t first = 0; first < l->n_steps; first += CHUNK) {                                                 \
            const int n = (int)(l->n_steps - first < CHUNK ? l->n_steps - first : CHUNK);                             \
            load_chunk(l, first, n);                                                                                  \
            for (int c = 0; c < n; c++) {                                                                             \
                find_metrics_##set(l, c, l->chosen[first + c]);                                                       \
                advance_##set(l, l->cost[c & 1][0], l->cost[~c & 1][0], l->takes_second + (first + c) * n_bits);      \
            }                                                                                                         \
        }                                                                                                             \
        int32_t state[LANES];                                                                                         \
        find_ends(l, state);                                                                                          \
        for (int64_t end = l->n_steps, first; end > 0; end = first) {                                                 \
            first = (end - 1) / CHUNK * CHUNK;                                                                        \
            for (int c = (int)(end - first) - 1; c >= 0; c--)                                                         \
                go_back_##set(l, state, l->takes_second + (first + c) * n_bits,                                       \
                              (const int16_t(*)[LANES])l->chosen[first + c], l->indices[c], l->books[c]);             \
            store_chunk(l, first, (int)(end - first));                                                                \
        }                                                                                                             \
    }

SEARCH(scalar, )
#ifdef HAS_X86
#define go_back_avx2 go_back_scalar
SEARCH(avx2, TARGET_AVX2)
SEARCH(avx512, TARGET_AVX512)
static void (*const SEARCHES[])(Lanes *) = {search_scalar, search_avx2, search_avx512};
static void (*const SEARCHES_OF_FEW[])(Lanes *) = {search_scalar, search_labels_avx2, search_labels_avx512};
#else
static void (*const SEARCHES[])(Lanes *) = {search_scalar, search_scalar, search_scalar};
static void (*const SEARCHES_OF_FEW[])(Lanes *) = {search_scalar, search_scalar, search_scalar};
#endif

/* The transitions of the trellis. The state after s is s >> 1 ^ q * feedback ^ parity * forward, where q is the lowest
   bit of s. It has the highest bit exactly if q is 1. */
static void find_transitions(Lanes *l)
{
    const Search *s = l->search;
    const unsigned half = (unsigned)s->n_states / 2, forward = s->forward & (half - 1);
    const unsigned highest = highest_bit(forward); /* of two predecessors the one without this bit is the first */
    for (unsigned q = 0, i = 0; q < 2; q++)
        for (unsigned x = 0; x < half; x++) {
            if (x & highest)
                continue;
            const unsigned other = x ^ forward, of_even = q ? x ^ (s->feedback & (2 * half - 1)) : x;
            const unsigned of_odd = of_even ^ forward, low = 2 * x + q, high = 2 * other + q;
            l->butterflies[i] = (Butterfly){(uint16_t)(low * LANES), (uint16_t)(high * LANES),
                                            (uint16_t)(of_even * LANES), (uint16_t)(of_odd * LANES)};
            l->slots[of_even] = (int32_t)(2 * i), l->slots[of_odd] = (int32_t)(2 * i + 1);
            l->ways[0][of_even] = (int32_t)(N_SUBSETS * low + q);
            l->ways[1][of_even] = (int32_t)(N_SUBSETS * high + 2 + q);
            l->ways[0][of_odd] = (int32_t)(N_SUBSETS * low + 2 + q);
            l->ways[1][of_odd] = (int32_t)(N_SUBSETS * high + q);
            i++;
        }
}

/* Search the tiles of ``n_down`` times ``n_across``, each of ``height`` times ``width``. */
static void search_tiles(Lanes *l, int64_t down, int64_t across, int64_t n_down, int64_t n_across, int64_t height,
                         int64_t width, int instruction_set)
{
    const Search *s = l->search;
    const int64_t in_a_row = (s->n_columns + s->tile_columns - 1) / s->tile_columns;
    l->n_steps = height * width, l->width = width;
    for (int64_t first = 0; l->n_steps && first < n_down * n_across; first += LANES) {
        l->n = (int)(n_down * n_across - first < LANES ? n_down * n_across - first : LANES);
        l->n_used = (l->n + HALF - 1) / HALF * HALF;
        for (int k = 0; k < LANES; k++) {
            const int64_t tile = first + (k < l->n ? k : l->n - 1);
            const int64_t i = down + tile / n_across, j = across + tile % n_across;
            l->place[k] = i * s->tile_rows * s->n_columns + j * s->tile_columns;
            l->number[k] = i * in_a_row + j;
            const int start = s->start ? s->start[l->number[k]] : 0;
            for (int t = 0; t < s->n_states; t++)
                l->cost[0][t][k] = t == start ? 0 : FORBIDDEN;
        }
        const int are_few = l->n <= FEW && s->n_states == MAX_STATES;
        (are_few ? SEARCHES_OF_FEW : SEARCHES)[instruction_set](l);
    }
}

int viterbi_search(const Search *s, int instruction_set)
{
    const int64_t most_steps = s->tile_rows * s->tile_columns;
    void *memory = malloc(sizeof(Lanes) + CACHE_LINE);
    uint16_t *takes_second = malloc((size_t)(most_steps * s->n_states) * HALVES * sizeof *takes_second);
    /* Vectors read 4 bytes for 2 */
    void *chosen = malloc((size_t)most_steps * sizeof(int16_t[N_SUBSETS][LANES]) + 4);
    Lanes *l = (Lanes *)(((uintptr_t)memory + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    const int has_memory = takes_second && chosen && memory;
    if (has_memory) {
        const int64_t n_down = s->n_rows / s->tile_rows, n_across = s->n_columns / s->tile_columns;
        const int64_t height = s->n_rows % s->tile_rows, width = s->n_columns % s->tile_columns;
        l->search = s, l->takes_second = takes_second, l->chosen = chosen;
        find_transitions(l);
        search_tiles(l, 0, 0, n_down, n_across, s->tile_rows, s->tile_columns, instruction_set);
        search_tiles(l, 0, n_across, n_down, 1, s->tile_rows, width, instruction_set);
        search_tiles(l, n_down, 0, 1, n_across, height, s->tile_columns, instruction_set);
        search_tiles(l, n_down, n_across, 1, 1, height, width, instruction_set);
    }
    free(takes_second), free(chosen), free(memory);
    return !has_memory;
}
