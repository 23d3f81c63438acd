/* Quantization with error feedback, some rows at a time (the twin is vqformat/encode/small/error_feedback.py). */

#ifndef VQFORMAT_FEEDBACK_H
#define VQFORMAT_FEEDBACK_H

#include <stdint.h>

#include "viterbi.h"

/* Rows of a matrix. Its columns are n_groups parts of equal width. */
typedef struct {
    Search search;        /* of the rows: n_rows, n_columns and so on; ``points`` are the ``aims``. A tile is
                             (tile_rows, tile_columns) of the matrix; ``start`` and ``end`` are not used, and there are
                             no ``weights`` */
    int64_t first_row;    /* number of the first row in the matrix */
    int64_t n_groups;
    int64_t n_costs;      /* elements of the costs of indices */
    float *aims;          /* (n_rows, n_columns): the values. Errors of earlier rows are subtracted from them */
    const float *weights; /* (n_rows, n_groups): of squared errors */
    const float *spread;  /* (n_rows, n_groups): what errors are divided by */
    const float *upper;   /* (n_groups, n_rows, n_rows): what an error in a row (axis 1) takes from a later row (axis 2) */
    uint8_t *states;      /* one for each tile of a row: the states before the first row, then those after the last */
    float *errors;        /* (n_rows, n_columns): the errors, divided by the spread */
} Feedback;

/* Returns 0, or 1 if there is no memory. */
int feedback_quantize(const Feedback *feedback, int instruction_set);

#endif
