/* Trellis-coded quantization: the path with the least cost (the twin is vqformat/encode/small/viterbi.py). */

#ifndef VQFORMAT_VITERBI_H
#define VQFORMAT_VITERBI_H

#include <stdint.h>

typedef struct {
    int64_t n_steps, n_sequences;
    const float *points;    /* (n_steps, n_sequences), in steps of the grid */
    const uint8_t *contexts; /* of the same shape, or NULL: all are 0 */
    const float *weights;   /* of the same shape, or NULL: all are 1 */
    const float *costs;     /* (n_contexts, 2, 2 * reach + 1), the cost of each index */
    int64_t n_costs;
    int32_t reach;
    int n_states;           /* at most 256 */
    const int32_t *before;  /* (2, n_states): the predecessors of each state */
    const int32_t *subsets; /* (2, n_states): the subset of points of these transitions, 2 * parity + q */
    const uint8_t *start;   /* the state of each sequence at its beginning, or NULL: all are 0 */
    int32_t *indices;       /* (n_steps, n_sequences) */
    uint8_t *books;         /* (n_steps, n_sequences) */
    uint8_t *end;           /* (n_sequences,) */
} Search;

/* Returns 0, or 1 if there is no memory. */
int viterbi_search(const Search *search, int instruction_set);

#endif
