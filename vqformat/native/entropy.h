/* Entropy coding of the codes of a trellis stage: counts of codes, and payloads (SPEC 12.3). */

#ifndef VQFORMAT_ENTROPY_H
#define VQFORMAT_ENTROPY_H

#include <stdint.h>

/* A part of a matrix of codes. Pointers are to its first element, row or column. */
typedef struct {
    int64_t n_rows, n_columns, stride; /* stride: columns of the matrix */
    const int16_t *indices;            /* the code is index + zero, 0 to entries - 1 */
    const uint8_t *books;              /* below n_books */
    const uint8_t *row_classes;        /* n_rows of them, or NULL: all are 0 */
    const uint8_t *column_classes;     /* n_columns of them, or NULL */
    int32_t zero;
    int64_t n_books, entries;
    int64_t n_symbols; /* n_contexts * n_books * entries; symbol (context * n_books + book) * entries + code */
} Codes;

/* Add to ``counts``, (n_symbols,), how often each symbol occurs. Returns 0, or 1 if a symbol is n_symbols or larger. */
int count_codes(const Codes *codes, int64_t *counts);

/* Encode a block, whose tiles are sequences.

   ``table`` has for each symbol its frequency in the lower 16 bits, at most 2^precision, and its start in the upper
   ones. A code with a frequency of 0 is left out. ``payload`` has room for 4 bytes for each tile, 2 for each code and 2
   more. Returns the bytes of the payload; -1 if a symbol is n_symbols or larger; -2 if there is no memory. */
int64_t rans_encode(const Codes *codes, int64_t tile_rows, int64_t tile_columns, const uint32_t *table, int precision,
                    uint8_t *payload, int instruction_set);

#endif
