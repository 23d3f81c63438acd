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

/* Turn the axes of the metrics of a chunk. */
static ALWAYS_INLINE void turn_metrics(Lanes *l)
{
    for (int lane = 0; lane < l->n; lane += 8)
        for (int subset = 0; subset < N_SUBSETS; subset++)
            for (int c = 0; c < CHUNK; c += 8)
                turn_words(l->by_lane[lane][subset] + c, N_SUBSETS * CHUNK, l->metric[c][subset] + lane,
                           N_SUBSETS * LANES);
}

/* Store the points of a chunk, given their subsets. */
static ALWAYS_INLINE void store_chunk(Lanes *l, int64_t step, int n)
{
    uint8_t subsets[LANES][CHUNK];
    for (int lane = 0; lane < l->n; lane += 8)
        for (int c = 0; c < CHUNK; c += 8)
            turn_bytes(l->subset[c] + lane, LANES, subsets[lane] + c, CHUNK);
    find_places(l, step, n);
    for (int lane = 0; lane < l->n; lane++) {
        const int16_t(*const chosen)[CHUNK] = (const int16_t(*)[CHUNK])l->chosen[step / CHUNK * LANES + lane];
        int16_t *indices = l->search->indices + l->place[lane], of_chunk[CHUNK];
        uint8_t *books = l->search->books + l->place[lane], books_of_chunk[CHUNK];
        if (l->are_together) {
            choose(subsets[lane], chosen, indices + l->at[0], books + l->at[0]);
            continue;
        }
        choose(subsets[lane], chosen, of_chunk, books_of_chunk);
        COPY(n, l->at, indices[place], of_chunk[c]);
        COPY(n, l->at, books[place], books_of_chunk[c]);
    }
}

/* The states in which the best paths end. */
static void find_ends(const Lanes *l, int32_t *state)
{
    const int16_t(*const cost)[LANES] = (const int16_t(*)[LANES])l->cost[l->n_steps & 1];
    memset(state, 0, LANES * sizeof *state);
    for (int k = 0; k < l->n; k++) {
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
            load_chunk(l, first, n, 0, l->n);                                                                         \
            for (int lane = 0; lane < l->n; lane++) {                                                                 \
                prefetch(l->search, l->place[lane] + l->at[n - 1] + 1);                                               \
                const Chunk chunk = chunk_of(l, lane, n);                                                             \
                find_metrics_##set(l->search, &chunk, l->by_lane[lane], l->chosen[first / CHUNK * LANES + lane]);     \
            }                                                                                                         \
            turn_metrics(l);                                                                                          \
            for (int c = 0; c < n; c++)                                                                               \
                advance_##set(l, l->metric[c], l->cost[c & 1][0], l->cost[~c & 1][0],                                 \
                              l->takes_second + (first + c) * n_bits);                                                \
        }                                                                                                             \
        int32_t state[LANES];                                                                                         \
        find_ends(l, state);                                                                                          \
        for (int64_t end = l->n_steps, first; end > 0; end = first) {                                                 \
            first = (end - 1) / CHUNK * CHUNK;                                                                        \
            const int n = (int)(end - first);                                                                         \
            for (int c = n - 1; c >= 0; c--)                                                                          \
                go_back_##set(l, state, l->takes_second + (first + c) * n_bits, l->subset[c]);                        \
            store_chunk(l, first, n);                                                                                 \
        }                                                                                                             \
    }

SEARCH(scalar, )
#ifdef HAS_X86
SEARCH(avx2, TARGET_AVX2)
SEARCH(avx512, TARGET_AVX512)
static void (*const SEARCHES[])(Lanes *) = {search_scalar, search_avx2, search_avx512};
/* AVX2 has vectors of a half. */
static void (*const SEARCHES_OF_HALF[])(Lanes *) = {search_scalar, search_avx2, search_avx2};
static void (*const SEARCHES_OF_FEW[])(Lanes *) = {search_scalar, search_labels_avx2, search_labels_avx512};
#else
static void (*const SEARCHES[])(Lanes *) = {search_scalar, search_scalar, search_scalar};
static void (*const SEARCHES_OF_HALF[])(Lanes *) = {search_scalar, search_scalar, search_scalar};
static void (*const SEARCHES_OF_FEW[])(Lanes *) = {search_scalar, search_scalar, search_scalar};
#endif

/* So many sequences take less time one after another than side by side. */
static const int FEW[] = {0, 8, 12};

/* The transitions of the trellis. The state after s is s >> 1 ^ q * feedback ^ parity * forward, where q is the lowest
   bit of s. It has the highest bit exactly if q is 1. */
static void find_transitions(Lanes *l)
{
    const Search *s = l->search;
    const unsigned half = (unsigned)s->n_states / 2, forward = s->forward & (half - 1);
    const unsigned feedback = s->feedback & (2 * half - 1), highest = highest_bit(forward);
    l->feedback = (int32_t)feedback, l->forward = (int32_t)forward, l->highest = (int32_t)highest;
    for (unsigned q = 0, i = 0; q < 2; q++)
        for (unsigned x = 0; x < half; x++) {
            if (x & highest)
                continue;
            const unsigned low = 2 * x + q, high = 2 * (x ^ forward) + q;
            const unsigned of_even = q ? x ^ feedback : x, of_odd = of_even ^ forward;
            l->butterflies[i] = (Butterfly){(uint16_t)(low * LANES), (uint16_t)(high * LANES),
                                            (uint16_t)(of_even * LANES), (uint16_t)(of_odd * LANES)};
            l->slots[of_even] = (int32_t)(2 * i), l->slots[of_odd] = (int32_t)(2 * i + 1);
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
        for (int k = 0; k < l->n; k++) {
            const int64_t tile = first + k;
            const int64_t i = down + tile / n_across, j = across + tile % n_across;
            l->place[k] = i * s->tile_rows * s->n_columns + j * s->tile_columns;
            l->number[k] = i * in_a_row + j;
            const int start = s->start ? s->start[l->number[k]] : 0;
            for (int t = 0; t < s->n_states; t++)
                l->cost[0][t][k] = t == start ? 0 : FORBIDDEN;
        }
        if (l->n <= FEW[instruction_set] && s->n_states == MAX_STATES)
            SEARCHES_OF_FEW[instruction_set](l);
        else if (l->n <= HALF)
            SEARCHES_OF_HALF[instruction_set](l);
        else
            SEARCHES[instruction_set](l);
    }
}

int viterbi_search(const Search *s, int instruction_set)
{
    const int64_t most_steps = s->tile_rows * s->tile_columns;
    void *memory = calloc(1, sizeof(Lanes) + CACHE_LINE); /* lanes that are not in use have small costs, too */
    uint16_t *takes_second = malloc((size_t)(most_steps * s->n_states) * HALVES * sizeof *takes_second);
    void *chosen = malloc((size_t)((most_steps + CHUNK - 1) / CHUNK) * LANES * sizeof(int16_t[N_SUBSETS][CHUNK]));
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
