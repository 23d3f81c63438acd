/* The values of a codebook stage (SPEC 9, 10), one block at a time. */

#ifndef VQFORMAT_CODEBOOK_H
#define VQFORMAT_CODEBOOK_H

#include <stdint.h>

enum { MOST_PLANES = 16 };

/* One block. The codes of its rows follow each other. Sections have the sizes that SPEC 10 gives them. */
typedef struct {
    int64_t n_rows, n_columns, dim;
    int64_t n_subvectors;        /* of a row: n_columns / dim, rounded up */
    int64_t entries;             /* 1 to 65536 */
    int n_planes;                /* 0: codes of ``width`` bits, 0 to 16, in one section */
    int width;
    const uint8_t *section[MOST_PLANES];
    int64_t section_nbytes[MOST_PLANES];
    int base[MOST_PLANES], per_byte[MOST_PLANES]; /* 2 to 256, 1 to 8 digits */
    const float *book;           /* (groups, entries, dim); or NULL: the values are (code - zero) * steps[group] */
    int64_t zero;
    const float *steps;
    const int64_t *row_group;    /* of each row, or NULL: 0 */
    const int64_t *column_group; /* what each subvector adds to it, or NULL: 0 */
    const float *scales;         /* or NULL: none */
    const int64_t *row_scale;    /* where the scales of each row begin */
    int64_t scale_columns;       /* columns of a scale; 0: all */
    int64_t first_column;        /* of the block, in the matrix */
    int adds;                    /* whether the values are added to those in ``out``; then dim is at most 512 */
    float *out;                  /* (n_rows, n_columns) */
} CodebookBlock;

/* Whether all codes and bytes obey SPEC 10. If not, ``out`` has no meaning. */
int codebook_decode(const CodebookBlock *block, int instruction_set);

#endif
