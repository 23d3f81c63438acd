/* Trellis-coded quantization: the path with the least cost (the twin is vqformat/encode/small/viterbi.py). */

#ifndef VQFORMAT_VITERBI_H
#define VQFORMAT_VITERBI_H

#include <stdint.h>

/* A matrix, (n_rows, n_columns), is cut into tiles, of which those at its end may be smaller. Each tile is a sequence,
   row after row. Arrays by sequence have the tiles of the first row of tiles first. */
typedef struct {
    int64_t n_rows, n_columns;
    int64_t tile_rows, tile_columns; /* at most those of the matrix */
    const float *points;             /* of the shape of the matrix, in steps of the grid */
    const uint8_t *contexts;         /* of the same shape, below n_contexts; or NULL: all are 0 */
    const float *weights;            /* of the same shape, or NULL: all are 1 */
    const float *costs;              /* (n_contexts, 2, 2 * reach + 1), the cost of each index */
    int32_t reach;                   /* 2 to 2^15 - 1 */
    int n_states;                    /* a power of 2, 4 to 256 */
    uint32_t feedback, forward;      /* shifted right by one. Only feedback has the bit n_states / 2; forward is not 0 */
    const uint8_t *start;            /* the state of each sequence at its beginning, or NULL: all are 0 */
    int16_t *indices;                /* of the shape of the matrix */
    uint8_t *books;                  /* of the shape of the matrix */
    uint8_t *end;                    /* the state of each sequence at its end */
} Search;

/* Returns 0, or 1 if there is no memory. */
int viterbi_search(const Search *search, int instruction_set);

#endif
