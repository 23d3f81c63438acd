/* The steps of the lanes of a trellis stage, for each instruction set; for trellis.c only.

   How a vector takes words from a stream: Bonfield, htscodecs, rANS 32x16. */

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
    float *kept;                /* if so, the values of all rows of the tiles but the last: (rows - 1, columns, stride) */
    uint32_t flips[4];          /* by the lowest bits of a symbol, 2 · parity + q: what a step flips in the state */
} Lanes;

/* Steps of the first ``n`` lanes. */
typedef struct {
    int64_t n, n_steps;         /* at most WIDTH steps */
    const uint32_t *first_slot; /* of Lanes, or NULL: all are 0 */
    const uint32_t *has_code;   /* of Lanes, 0 from lane n on; or NULL: all of the n lanes have a code */
    const void *slots[WIDTH];   /* of each step */
    float *values[WIDTH];       /* where those of each step go */
} Run;

typedef void Steps(Lanes *lanes, const Run *run);

static uint32_t read_u16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }
static uint32_t read_u32(const uint8_t *p) { return read_u16(p) | read_u16(p + 2) << 16; }

/* In the kernels, these three say which parts are needed. They are constants where a kernel is called, so that the
   compiler leaves out the others. */
#define PARTS int is_wide, int has_book, int has_trellis

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
    uint8_t low[CHUNK]; /* the lanes that take a word */
    int64_t n_low = 0;
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
    for (int t = 0; t < n; t++) { /* no branch: it could not be predicted */
        low[n_low] = (uint8_t)t;
        n_low += x[t] < LOWEST;
    }
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

static ALWAYS_INLINE void run_scalar(Lanes *l, const Run *run, PARTS)
{
    for (int64_t k = 0; k < run->n_steps; k++)
        step_scalar(l, run, k, 0, is_wide, has_book, has_trellis);
}

#ifdef HAS_X86
/* For each set of eight lanes that take a word: which bytes of the next words go to 16 bits of each lane, or 0. */
static uint8_t words_of_lanes[256][16] __attribute__((aligned(16)));

/* The lanes that exist, of eight from the first one on. */
static const uint32_t EXISTS[16] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};

/* What the steps of a kernel have in common. It is copied, so that no store can change it. */
typedef struct {
    uint32_t *x, *state;
    const float *book;
    __m256i precision, mask, one, half, zero;
    __m256 size, flips;
    __m256i all; /* the mask of all lanes, for gathers */
} Common;

/* A gather with this mask, which the compiler does not know, first clears its register. Without a mask it would wait for
   the register's last value. */
TARGET_AVX2
static ALWAYS_INLINE __m256i all_lanes(void)
{
    __m256i all = _mm256_set1_epi32(-1);
    __asm__("" : "+x"(all));
    return all;
}

/* Eight lanes from ``t`` on. ``has_code``: of these lanes; or NULL: all have a code. Returns the next word. */
TARGET_AVX2
static ALWAYS_INLINE const uint8_t *eight_avx2(Common c, int64_t t, const void *slots, const uint32_t *first_slot,
                                               const uint32_t *has_code, float *values, const uint8_t *next, PARTS)
{
    const __m256i none = _mm256_setzero_si256();
    const __m256i exists = has_code ? _mm256_loadu_si256((const __m256i *)has_code) : none;
    const __m256i old = _mm256_loadu_si256((const __m256i *)(c.x + t));
    __m256i slot = _mm256_and_si256(old, c.mask), s = none, q = none, step, symbol;
    if (has_trellis) {
        s = _mm256_loadu_si256((const __m256i *)(c.state + t));
        q = _mm256_and_si256(s, c.one);
        slot = _mm256_or_si256(slot, _mm256_sllv_epi32(q, c.precision));
    }
    if (first_slot)
        slot = _mm256_add_epi32(slot, _mm256_loadu_si256((const __m256i *)(first_slot + t)));
    if (is_wide) {
        const __m256i order = _mm256_permute4x64_epi64(slot, 0xD8); /* lanes 0 1 4 5, 2 3 6 7 */
        const __m256i some = _mm256_mask_i32gather_epi64(none, slots, _mm256_castsi256_si128(order), c.all, 8);
        const __m256i others = _mm256_mask_i32gather_epi64(none, slots, _mm256_extracti128_si256(order, 1), c.all, 8);
        const __m256 some_halves = _mm256_castsi256_ps(some), other_halves = _mm256_castsi256_ps(others);
        step = _mm256_castps_si256(_mm256_shuffle_ps(some_halves, other_halves, 0x88));
        symbol = _mm256_castps_si256(_mm256_shuffle_ps(some_halves, other_halves, 0xDD));
    } else {
        step = _mm256_mask_i32gather_epi32(none, slots, slot, c.all, 4);
        symbol = _mm256_srli_epi32(step, 24);
    }
    const __m256i less = _mm256_mullo_epi32(_mm256_srlv_epi32(old, c.precision), _mm256_and_si256(step, c.mask));
    const __m256i start = _mm256_and_si256(_mm256_srlv_epi32(step, c.precision), c.mask);
    __m256i x = _mm256_sub_epi32(_mm256_sub_epi32(old, start), less);
    __m256i is_low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), none);
    if (has_code)
        is_low = _mm256_and_si256(is_low, exists);
    const unsigned set = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(is_low));
    const __m128i words = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)next),
                                           _mm_load_si128((const __m128i *)words_of_lanes[set]));
    x = _mm256_sllv_epi32(x, _mm256_and_si256(is_low, c.half));
    x = _mm256_or_si256(x, _mm256_cvtepu16_epi32(words));
    if (has_code)
        x = _mm256_blendv_epi8(old, x, exists);
    _mm256_storeu_si256((__m256i *)(c.x + t), x);
    if (has_trellis) {
        symbol = _mm256_or_si256(_mm256_add_epi32(symbol, symbol), q);
        const __m256i flip = _mm256_castps_si256(_mm256_permutevar_ps(c.flips, symbol));
        __m256i after = _mm256_xor_si256(_mm256_srli_epi32(s, 1), flip);
        if (has_code)
            after = _mm256_blendv_epi8(s, after, exists);
        _mm256_storeu_si256((__m256i *)(c.state + t), after);
    }
    __m256 value;
    if (has_book)
        value = _mm256_mask_i32gather_ps(_mm256_setzero_ps(), c.book, symbol, _mm256_castsi256_ps(c.all), 4);
    else
        value = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(symbol, c.zero)), c.size);
    if (has_code)
        _mm256_maskstore_ps(values + t, exists, value);
    else
        _mm256_storeu_ps(values + t, value);
    return next + 2 * _mm_popcnt_u32(set);
}

TARGET_AVX2
static ALWAYS_INLINE void run_avx2(Lanes *l, const Run *run, PARTS)
{
    const TrellisBlock *b = l->block;
    const Common c = {l->x, l->state, b->book, _mm256_set1_epi32(b->precision),
                      _mm256_set1_epi32((1 << b->precision) - 1), _mm256_set1_epi32(1), _mm256_set1_epi32(16),
                      _mm256_set1_epi32(b->zero), _mm256_set1_ps(b->step),
                      _mm256_broadcast_ps((const __m128 *)l->flips), all_lanes()};
    const uint8_t *next = l->next, *const end = l->end;
    const uint32_t *const first_slot = run->first_slot;
    const int64_t n = run->n, n_whole = run->has_code ? 0 : n / 8 * 8;
    for (int64_t k = 0, t; k < run->n_steps; k++) {
        const void *const slots = run->slots[k];
        float *const values = run->values[k];
        for (t = 0; t < n_whole && end - next >= 16; t += 8)
            next = eight_avx2(c, t, slots, first_slot, NULL, values, next, is_wide, has_book, has_trellis);
        for (; t < n && end - next >= 16; t += 8) {
            const uint32_t *has_code = run->has_code ? run->has_code + t : EXISTS + 8 - (n - t);
            next = eight_avx2(c, t, slots, first_slot, has_code, values, next, is_wide, has_book, has_trellis);
        }
        if (t < n) {
            l->next = next;
            step_scalar(l, run, k, t, is_wide, has_book, has_trellis);
            next = l->next;
        }
    }
    l->next = next;
}

TARGET_AVX512
static ALWAYS_INLINE void run_avx512(Lanes *l, const Run *run, PARTS)
{
    const TrellisBlock *b = l->block;
    const __m512i precision = _mm512_set1_epi32(b->precision), mask = _mm512_set1_epi32((1 << b->precision) - 1);
    const __m512 flips = _mm512_broadcast_f32x4(_mm_loadu_ps((const float *)l->flips)), size = _mm512_set1_ps(b->step);
    const __m512i none = _mm512_setzero_si512(), one = _mm512_set1_epi32(1);
    const __m512i zero = _mm512_set1_epi32(b->zero), lowest = _mm512_set1_epi32((int)LOWEST);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, one);
    const float *const book = b->book;
    const uint32_t *const first_slot = run->first_slot;
    const uint8_t *next = l->next, *const end = l->end;
    uint32_t *const xs = l->x, *const states = l->state;
    const int64_t n = run->n;
    for (int64_t k = 0, t; k < run->n_steps; k++) {
        const void *const slots = run->slots[k];
        float *const values = run->values[k];
        for (t = 0; t < n && end - next >= 32; t += 16) {
            __mmask16 exists = n - t >= 16 ? 0xFFFF : (__mmask16)((1u << (n - t)) - 1);
            if (run->has_code)
                exists = _mm512_movepi32_mask(_mm512_loadu_si512(run->has_code + t));
            __m512i x = _mm512_loadu_si512(xs + t), s = x, q = x, step, symbol;
            __m512i slot = _mm512_and_si512(x, mask);
            if (has_trellis) {
                s = _mm512_loadu_si512(states + t);
                q = _mm512_and_si512(s, one);
                slot = _mm512_or_si512(slot, _mm512_sllv_epi32(q, precision));
            }
            if (first_slot)
                slot = _mm512_add_epi32(slot, _mm512_loadu_si512(first_slot + t));
            if (is_wide) {
                const __m512i low = _mm512_mask_i32gather_epi64(none, 0xFF, _mm512_castsi512_si256(slot), slots, 8);
                const __m512i high = _mm512_mask_i32gather_epi64(none, 0xFF, _mm512_extracti64x4_epi64(slot, 1), slots, 8);
                step = _mm512_permutex2var_epi32(low, even, high);
                symbol = _mm512_permutex2var_epi32(low, odd, high);
            } else {
                step = _mm512_mask_i32gather_epi32(none, 0xFFFF, slot, slots, 4);
                symbol = _mm512_srli_epi32(step, 24);
            }
            __m512i less = _mm512_mullo_epi32(_mm512_srlv_epi32(x, precision), _mm512_and_si512(step, mask));
            less = _mm512_add_epi32(less, _mm512_and_si512(_mm512_srlv_epi32(step, precision), mask));
            x = _mm512_sub_epi32(x, less);
            const __mmask16 is_low = _mm512_mask_cmplt_epu32_mask(exists, x, lowest);
            __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)next));
            words = _mm512_maskz_expand_epi32(is_low, words);
            x = _mm512_mask_or_epi32(x, is_low, _mm512_slli_epi32(x, 16), words);
            next += 2 * _mm_popcnt_u32(is_low);
            _mm512_mask_storeu_epi32(xs + t, exists, x);
            if (has_trellis) {
                symbol = _mm512_or_si512(_mm512_add_epi32(symbol, symbol), q);
                const __m512i flip = _mm512_castps_si512(_mm512_permutevar_ps(flips, symbol));
                _mm512_mask_storeu_epi32(states + t, exists, _mm512_xor_si512(_mm512_srli_epi32(s, 1), flip));
            }
            _mm512_mask_storeu_ps(values + t, exists,
                                  has_book ? _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xFFFF, symbol, book, 4)
                                           : _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(symbol, zero)), size));
        }
        if (t < n) {
            l->next = next;
            step_scalar(l, run, k, t, is_wide, has_book, has_trellis);
            next = l->next;
        }
    }
    l->next = next;
}
#endif

/* The eight kernels of an instruction set: by whether slots are wide, there is a book, there is a trellis. */
#define KERNEL(set, attributes, w, k, s)                                                                              \
    attributes static void set##_##w##k##s(Lanes *l, const Run *run) { run_##set(l, run, w, k, s); }
#define KERNELS(set, attributes)                                                                                      \
    KERNEL(set, attributes, 0, 0, 0) KERNEL(set, attributes, 0, 0, 1) KERNEL(set, attributes, 0, 1, 0)                \
    KERNEL(set, attributes, 0, 1, 1) KERNEL(set, attributes, 1, 0, 0) KERNEL(set, attributes, 1, 0, 1)                \
    KERNEL(set, attributes, 1, 1, 0) KERNEL(set, attributes, 1, 1, 1)
#define NAMES(set) {set##_000, set##_001, set##_010, set##_011, set##_100, set##_101, set##_110, set##_111}

KERNELS(scalar, )
#ifdef HAS_X86
KERNELS(avx2, TARGET_AVX2)
KERNELS(avx512, TARGET_AVX512)
static Steps *const STEPS[N_INSTRUCTION_SETS][8] = {NAMES(scalar), NAMES(avx2), NAMES(avx512)};
#else
static Steps *const STEPS[N_INSTRUCTION_SETS][8] = {NAMES(scalar), NAMES(scalar), NAMES(scalar)};
#endif

#endif
