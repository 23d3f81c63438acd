/* Decoding the codes of a trellis stage (SPEC 6 "FREQ", 12.1 to 12.4), one block at a time. */

#ifndef VQFORMAT_TRELLIS_H
#define VQFORMAT_TRELLIS_H

#include <stdint.h>

/* What became of a payload: nothing, or the fault that was found. */
enum { OK, STATE_TOO_LOW, WORDS_END, WORDS_LEFT, STATE_AT_END, NO_MEMORY, SLOTS_MISSING };

/* One block. All lengths count elements. The caller has checked that the payload has 4 * n_tiles to
   4 * n_tiles + 2 * n_rows * n_columns bytes, an even number (ANS-001). */
typedef struct {
    const uint8_t *payload;
    int64_t payload_nbytes;
    int64_t n_rows, n_columns;       /* of the block; their product is at most 2^22 (LAY-005) */
    int64_t tile_rows, tile_columns; /* at most those of the block */
    const uint8_t *row_classes;      /* n_rows of them, or NULL: all are 0 */
    const uint8_t *column_classes;   /* n_columns of them, or NULL */
    int precision;                   /* P, 1 to 14 */
    int n_books;                     /* B, 1 or 2 */
    uint32_t feedback, forward;      /* shifted right by one: below 256 */
    const void *slots;               /* (n_contexts, B, 2^P) of uint32, or of uint64 if is_wide, see trellis_slots */
    int is_wide;
    int64_t n_slots;
    const float *book; /* the value of each symbol, at least B * entries; or NULL: the value is (symbol - zero) * step */
    int32_t zero;
    float step;
    const int64_t *row_places;    /* where each row of the block begins in out, in elements */
    const int64_t *column_places; /* what each column adds to that; NULL: its number in the block */
    const float *row_scales;      /* a factor for each row of the block, or NULL */
    const float *addend;          /* (n_rows, n_columns): what is added to the values, or NULL. It may be out without
                                     column_places */
    float *out;
} TrellisBlock;

/* Call once before trellis_decode. */
void trellis_start(void);

int trellis_decode(const TrellisBlock *block, int instruction_set);

/* Fill the slots of ``n_tables`` tables of frequencies, ``(n_tables, entries)``, each of which has the sum 2^P. A slot
   has 2^P - frequency in its lowest P bits, the start of its code in the next P bits, and its code in the bits from 24 on,
   or from 32 on if it is wide. ``slots`` has room for TOGETHER slots more. */
enum { TOGETHER = 16 };
void trellis_slots(const uint32_t *frequencies, int64_t n_tables, int64_t entries, int precision, int is_wide,
                   void *slots);

#endif
