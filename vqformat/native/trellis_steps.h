/* The steps of the lanes of a trellis stage, in portable C; for the other headers of trellis.c only. */

#ifndef VQFORMAT_TRELLIS_STEPS_H
#define VQFORMAT_TRELLIS_STEPS_H

#include <string.h>

#include "instruction_sets.h"
#include "transpose.h"
#include "trellis.h"

enum { WIDTH = SIDE }; /* steps whose values are put in place together: a cache line */
static const uint32_t LOWEST = 65536; /* the least value of x, and its last one */

/* The lanes of a block, while it is decoded. Rows of arrays have ``stride`` elements: a vector that begins at the last
   lane ends within them. */
typedef struct {
    const TrellisBlock *block;
    const uint8_t *next, *end;  /* words */
    int is_short;               /* words were missing */
    int64_t n, n_across;        /* lanes, and those beside each other */
    int64_t stride;
    uint32_t *x, *state;        /* SPEC 12.3, 12.2 */
    uint32_t *first_slot;       /* first slot of each lane's context, from that of the step on */
    uint32_t *has_code;         /* all bits are 1 for lanes that have a code where tiles lack columns, else 0 */
    uint32_t *row_slot, *column_slot; /* what the class of the row (column) adds to the first slot */
    float *values;              /* of the last steps: (WIDTH, stride) */
    int has_runs;               /* whether the rows of the block are beside each other in the tensor */
    int are_parts;              /* whether the values of a step are put in the run of their column at once */
    float *kept;                /* for runs without parts, values of all rows of the tiles but the last: (rows - 1, columns,
                                   stride); else room for a run */
    uint32_t flips[4];          /* by the lowest bits of a symbol, 2 · parity + q: what a step flips in the state */
} Lanes;

/* Steps of the first ``n`` lanes. */
typedef struct {
    int64_t n, n_steps;         /* at most WIDTH steps */
    const uint32_t *first_slot; /* of Lanes, or NULL: all are 0 */
    const uint32_t *has_code;   /* of Lanes, 0 from lane n on; or NULL: all of the n lanes have a code */
    const void *slots[WIDTH];   /* of each step */
    float *values[WIDTH];       /* where those of each step go */
    const float *ahead[WIDTH];  /* memory to ask for at each step, since it is written soon; or NULL */
    int64_t n_ahead;            /* its length */
} Run;

typedef void Steps(Lanes *lanes, const Run *run);

/* Ask for memory before it is written: the processor does not foresee where it is. */
static ALWAYS_INLINE void prefetch_ahead(const Run *run, int64_t k)
{
    const float *const ahead = run->ahead[k];
    for (int64_t i = 0; ahead && i < run->n_ahead; i += WIDTH)
        PREFETCH_TO_WRITE(ahead + i);
}

static uint32_t read_u16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }
static uint32_t read_u32(const uint8_t *p) { return read_u16(p) | read_u16(p + 2) << 16; }

/* In the kernels, these three say which parts are needed. They are constants where a kernel is called, so that the
   compiler leaves out the others. */
#define PARTS int is_wide, int has_book, int has_trellis

/* For each set of eight: how many there are, and their numbers. */
static uint8_t set_sizes[256], set_numbers[256][8];

/* Write the numbers of those of eight lanes that are in a set, plus ``first``, to ``numbers``, which has room for eight.
   ``is_in``: 0 or 1 for each lane. Returns how many there are. */
static ALWAYS_INLINE int put_numbers(const uint8_t *is_in, int first, uint8_t *numbers)
{
    const uint64_t bytes = read_u32(is_in) | (uint64_t)read_u32(is_in + 4) << 32;
    const unsigned set = (unsigned)(bytes * 0x0102040810204080u >> 56); /* bit i is byte i */
    uint64_t eight;
    memcpy(&eight, set_numbers[set], 8);
    eight += (uint64_t)first * 0x0101010101010101u;
    memcpy(numbers, &eight, 8);
    return set_sizes[set];
}

enum { CHUNK = 256 }; /* lanes that take a step together; a byte holds their number */

/* One step of ``n`` lanes from ``first`` on, at most CHUNK. Each loop does one thing to all lanes: compilers make vectors
   of most of them, and in the others the processor has many lanes in flight. */
static ALWAYS_INLINE void chunk_scalar(Lanes *l, int64_t first, int n, const void *slots, const uint32_t *first_slot,
                                       const uint32_t *has_code, float *values, PARTS)
{
    const TrellisBlock *b = l->block;
    const int precision = b->precision;
    const uint32_t mask = (1u << precision) - 1, of_q = l->flips[1], of_parity = l->flips[2];
    const int32_t zero = b->zero;
    const float size = b->step, *const book = b->book;
    uint32_t *const x = l->x + first, *const state = l->state + first;
    uint32_t slot[CHUNK], step[CHUNK], symbol[CHUNK];
    for (int t = 0; t < n; t++)
        slot[t] = (x[t] & mask) + (has_trellis ? (state[t] & 1) << precision : 0);
    for (int t = 0; first_slot && t < n; t++)
        slot[t] += first_slot[first + t];
    for (int t = 0; t < n; t++)
        if (is_wide) {
            const uint64_t found = ((const uint64_t *)slots)[slot[t]];
            step[t] = (uint32_t)found, symbol[t] = (uint32_t)(found >> 32);
        } else {
            step[t] = ((const uint32_t *)slots)[slot[t]], symbol[t] = step[t] >> 24;
        }
    /* f (x >> P) + slot - start, where slot is x mod 2^P */
    for (int t = 0; t < n; t++) {
        const uint32_t less = (x[t] >> precision) * (step[t] & mask) + (step[t] >> precision & mask);
        x[t] -= has_code ? less & has_code[first + t] : less;
    }
    uint8_t is_low[CHUNK + 8], low[CHUNK + 8]; /* the lanes that take a word */
    int64_t n_low = 0;
    memset(is_low + n, 0, 8);
    for (int t = 0; t < n; t++)
        is_low[t] = x[t] < LOWEST;
    for (int t = 0; t < n; t += 8) /* no branch on x: it could not be predicted */
        n_low += put_numbers(is_low + t, t, low + n_low);
    if (l->end - l->next < 2 * n_low) {
        l->is_short = 1;
        n_low = (l->end - l->next) / 2;
    }
    for (int64_t k = 0; k < n_low; k++, l->next += 2)
        x[low[k]] = x[low[k]] << 16 | read_u16(l->next);
    for (int t = 0; has_trellis && t < n; t++) {
        const uint32_t s = state[t], code = symbol[t], q = s & 1;
        const uint32_t after = s >> 1 ^ ((0u - q) & of_q) ^ ((0u - (code & 1)) & of_parity);
        symbol[t] = 2 * code + q;
        state[t] = has_code ? s ^ ((s ^ after) & has_code[first + t]) : after;
    }
    for (int t = 0; t < n; t++)
        values[t] = has_book ? book[symbol[t]] : (float)((int32_t)symbol[t] - zero) * size;
}

/* Step ``k`` of the lanes from ``first`` on. */
static ALWAYS_INLINE void step_scalar(Lanes *l, const Run *run, int64_t k, int64_t first, PARTS)
{
    for (; first < run->n; first += CHUNK) {
        const int n = run->n - first < CHUNK ? (int)(run->n - first) : CHUNK;
        float *const values = run->values[k] + first;
        if (run->has_code)
            chunk_scalar(l, first, n, run->slots[k], run->first_slot, run->has_code, values, is_wide, has_book, has_trellis);
        else
            chunk_scalar(l, first, n, run->slots[k], run->first_slot, NULL, values, is_wide, has_book, has_trellis);
    }
}

/* The same, not inlined: vector kernels call it near the end of the words, where a vector could be read beyond it. */
#define STEP(w, b, t)                                                                                                 \
    static void step_##w##b##t(Lanes *l, const Run *run, int64_t k, int64_t first)                                    \
    {                                                                                                                 \
        step_scalar(l, run, k, first, w, b, t);                                                                       \
    }
STEP(0, 0, 0) STEP(0, 0, 1) STEP(0, 1, 0) STEP(0, 1, 1) STEP(1, 0, 0) STEP(1, 0, 1) STEP(1, 1, 0) STEP(1, 1, 1)

typedef void Step(Lanes *l, const Run *run, int64_t k, int64_t first);

static ALWAYS_INLINE void run_scalar(Lanes *l, const Run *run, Step *step, PARTS)
{
    (void)is_wide, (void)has_book, (void)has_trellis;
    for (int64_t k = 0; k < run->n_steps; k++) {
        prefetch_ahead(run, k);
        step(l, run, k, 0);
    }
}

#endif
