/* One step of the lanes of a trellis stage, for each instruction set; for trellis.c only.

   How a vector takes words from a stream: Bonfield, htscodecs, rANS 32x16. */

#ifndef VQFORMAT_TRELLIS_STEPS_H
#define VQFORMAT_TRELLIS_STEPS_H

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
    uint32_t *x, *state;        /* SPEC 12.3, 12.2; the state is shifted left by P */
    const void *slots;          /* of the class of the column, if all lanes are in the same column */
    uint32_t *first_slot;       /* first slot of each lane's context, from there */
    uint32_t *row_slot, *column_slot; /* what the class of the row (column) adds to it */
    float *values;              /* of the last steps: (WIDTH, stride), fewer rows if a tile has fewer columns */
    uint32_t flips[4];          /* by the lowest bits of a symbol, 2 · parity + q: what a step flips in the state */
} Lanes;

/* One step of the lanes first to last - 1. ``first_slot`` may be NULL; ``out`` has a place for each lane. */
typedef void Step(Lanes *lanes, int64_t first, int64_t last, const uint32_t *first_slot, float *out);

static uint32_t read_u16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }
static uint32_t read_u32(const uint8_t *p) { return read_u16(p) | read_u16(p + 2) << 16; }

/* In the kernels, these three say which parts are needed. They are constants where a kernel is called, so that the
   compiler leaves out the others. */
#define PARTS int is_wide, int has_book, int has_trellis

/* Without ``is_near_end`` there are words enough for all lanes. */
static ALWAYS_INLINE void run_scalar(Lanes *l, int64_t first, int64_t last, const uint32_t *first_slot, float *out,
                                     PARTS, int is_near_end)
{
    const TrellisBlock *b = l->block;
    const int precision = b->precision;
    const uint32_t mask = (1u << precision) - 1, book_bit = 1u << precision;
    const int32_t zero = b->zero;
    const float size = b->step, *book = b->book;
    const void *const slots = l->slots;
    const uint32_t flips[4] = {l->flips[0], l->flips[1], l->flips[2], l->flips[3]};
    const uint8_t *next = l->next, *const end = l->end;
    uint32_t *const xs = l->x, *const states = l->state;
    for (int64_t t = first; t < last; t++) {
        uint32_t x = xs[t], s = 0, slot = x & mask, step, symbol;
        if (has_trellis)
            s = states[t], slot |= s & book_bit;
        if (first_slot)
            slot += first_slot[t];
        if (is_wide) {
            const uint64_t found = ((const uint64_t *)slots)[slot];
            step = (uint32_t)found, symbol = (uint32_t)(found >> 32);
        } else {
            step = ((const uint32_t *)slots)[slot], symbol = step >> 24;
        }
        /* f (x >> P) + slot - start, where slot is x mod 2^P */
        x -= (x >> precision) * (step & mask) + (step >> precision & mask);
        const uint32_t is_low = 0u - (x < LOWEST); /* no branch: it could not be predicted */
        uint32_t word = 0;
        if (!is_near_end || next < end)
            word = read_u16(next);
        else if (is_low)
            l->is_short = 1;
        x ^= (x ^ (x << 16 | word)) & is_low;
        next += !is_near_end || next < end ? is_low & 2 : 0;
        xs[t] = x;
        if (has_trellis)
            states[t] = s >> 1 ^ flips[symbol & 3];
        out[t] = has_book ? book[symbol] : (float)((int32_t)symbol - zero) * size;
    }
    l->next = next;
}

static ALWAYS_INLINE void step_scalar(Lanes *l, int64_t first, int64_t last, const uint32_t *first_slot, float *out,
                                      PARTS)
{
    if (l->end - l->next >= 2 * (last - first))
        run_scalar(l, first, last, first_slot, out, is_wide, has_book, has_trellis, 0);
    else
        run_scalar(l, first, last, first_slot, out, is_wide, has_book, has_trellis, 1);
}

#ifdef HAS_X86
/* For each set of lanes that take a word: the number of the word that each of the eight takes. */
static uint32_t word_of_lane[256][8] __attribute__((aligned(32)));

/* The lanes that exist, of eight from the first one on. */
static const int32_t EXISTS[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

/* What the steps of a kernel have in common. It is copied, so that no store can change it. */
typedef struct {
    uint32_t *x, *state;
    const void *slots;
    const float *book;
    __m128i precision;
    __m256i mask, book_bit, zero;
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

/* Eight lanes from ``t`` on, of which the first ``n`` exist; ``is_whole`` says that all do. Returns the next word. */
TARGET_AVX2
static ALWAYS_INLINE const uint8_t *eight_avx2(Common c, int64_t t, int64_t n, const uint32_t *first_slot, float *out,
                                               const uint8_t *next, PARTS, int is_whole)
{
    const __m256i none = _mm256_setzero_si256();
    const __m256i exists = is_whole ? none : _mm256_loadu_si256((const __m256i *)(EXISTS + 8 - n));
    const __m256i old = _mm256_loadu_si256((const __m256i *)(c.x + t));
    __m256i slot = _mm256_and_si256(old, c.mask), s = none, step, symbol;
    if (has_trellis) {
        s = _mm256_loadu_si256((const __m256i *)(c.state + t));
        slot = _mm256_or_si256(slot, _mm256_and_si256(s, c.book_bit));
    }
    if (first_slot)
        slot = _mm256_add_epi32(slot, _mm256_loadu_si256((const __m256i *)(first_slot + t)));
    if (!is_whole)
        slot = _mm256_and_si256(slot, exists);
    if (is_wide) {
        const __m256i order = _mm256_permute4x64_epi64(slot, 0xD8); /* lanes 0 1 4 5, 2 3 6 7 */
        const __m256i some = _mm256_mask_i32gather_epi64(none, c.slots, _mm256_castsi256_si128(order), c.all, 8);
        const __m256i others = _mm256_mask_i32gather_epi64(none, c.slots, _mm256_extracti128_si256(order, 1), c.all, 8);
        const __m256 some_halves = _mm256_castsi256_ps(some), other_halves = _mm256_castsi256_ps(others);
        step = _mm256_castps_si256(_mm256_shuffle_ps(some_halves, other_halves, 0x88));
        symbol = _mm256_castps_si256(_mm256_shuffle_ps(some_halves, other_halves, 0xDD));
    } else {
        step = _mm256_mask_i32gather_epi32(none, c.slots, slot, c.all, 4);
        symbol = _mm256_srli_epi32(step, 24);
    }
    const __m256i less = _mm256_mullo_epi32(_mm256_srl_epi32(old, c.precision), _mm256_and_si256(step, c.mask));
    const __m256i start = _mm256_and_si256(_mm256_srl_epi32(step, c.precision), c.mask);
    __m256i x = _mm256_sub_epi32(_mm256_sub_epi32(old, less), start);
    __m256i is_low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), none);
    if (!is_whole)
        is_low = _mm256_and_si256(is_low, exists);
    const unsigned set = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(is_low));
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)next));
    words = _mm256_permutevar8x32_epi32(words, _mm256_load_si256((const __m256i *)word_of_lane[set]));
    x = _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), words), is_low);
    if (!is_whole)
        x = _mm256_blendv_epi8(old, x, exists);
    _mm256_storeu_si256((__m256i *)(c.x + t), x);
    if (has_trellis) {
        const __m256i flip = _mm256_castps_si256(_mm256_permutevar_ps(c.flips, symbol));
        __m256i next_state = _mm256_xor_si256(_mm256_srli_epi32(s, 1), flip);
        if (!is_whole)
            next_state = _mm256_blendv_epi8(s, next_state, exists);
        _mm256_storeu_si256((__m256i *)(c.state + t), next_state);
    }
    __m256 value;
    if (has_book)
        value = _mm256_mask_i32gather_ps(_mm256_setzero_ps(), c.book, is_whole ? symbol : _mm256_and_si256(symbol, exists),
                                         _mm256_castsi256_ps(c.all), 4);
    else
        value = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(symbol, c.zero)), c.size);
    _mm256_storeu_ps(out + t, value);
    return next + 2 * _mm_popcnt_u32(set);
}

TARGET_AVX2
static ALWAYS_INLINE void step_avx2(Lanes *l, int64_t first, int64_t last, const uint32_t *first_slot, float *out,
                                    PARTS)
{
    const TrellisBlock *b = l->block;
    const Common c = {l->x, l->state, l->slots, b->book, _mm_cvtsi32_si128(b->precision),
                      _mm256_set1_epi32((1 << b->precision) - 1), _mm256_set1_epi32(1 << b->precision),
                      _mm256_set1_epi32(b->zero), _mm256_set1_ps(b->step),
                      _mm256_broadcast_ps((const __m128 *)l->flips), all_lanes()};
    const uint8_t *next = l->next, *const end = l->end;
    int64_t t = first;
    if (first_slot)
        for (; last - t >= 8 && end - next >= 16; t += 8)
            next = eight_avx2(c, t, 8, first_slot, out, next, is_wide, has_book, has_trellis, 1);
    else
        for (; last - t >= 8 && end - next >= 16; t += 8)
            next = eight_avx2(c, t, 8, NULL, out, next, is_wide, has_book, has_trellis, 1);
    if (t < last && end - next >= 16) {
        next = eight_avx2(c, t, last - t, first_slot, out, next, is_wide, has_book, has_trellis, 0);
        t += 8;
    }
    l->next = next;
    if (t < last)
        step_scalar(l, t, last, first_slot, out, is_wide, has_book, has_trellis);
}

TARGET_AVX512
static ALWAYS_INLINE void step_avx512(Lanes *l, int64_t first, int64_t last, const uint32_t *first_slot, float *out,
                                      PARTS)
{
    const TrellisBlock *b = l->block;
    const __m128i precision = _mm_cvtsi32_si128(b->precision);
    const __m512i mask = _mm512_set1_epi32((1 << b->precision) - 1), book_bit = _mm512_set1_epi32(1 << b->precision);
    const __m512 flips = _mm512_broadcast_f32x4(_mm_loadu_ps((const float *)l->flips));
    const __m512i none = _mm512_setzero_si512(), zero = _mm512_set1_epi32(b->zero), lowest = _mm512_set1_epi32((int)LOWEST);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512 size = _mm512_set1_ps(b->step);
    const void *const slots = l->slots;
    const float *const book = b->book;
    const uint8_t *next = l->next, *const end = l->end;
    uint32_t *const xs = l->x, *const states = l->state;
    int64_t t = first;
    for (; t < last && end - next >= 32; t += 16) {
        const __mmask16 exists = last - t >= 16 ? 0xFFFF : (__mmask16)((1u << (last - t)) - 1);
        __m512i x = _mm512_maskz_loadu_epi32(exists, xs + t), s = x, step, symbol;
        __m512i slot = _mm512_and_si512(x, mask);
        if (has_trellis) {
            s = _mm512_maskz_loadu_epi32(exists, states + t);
            slot = _mm512_or_si512(slot, _mm512_and_si512(s, book_bit));
        }
        if (first_slot)
            slot = _mm512_add_epi32(slot, _mm512_maskz_loadu_epi32(exists, first_slot + t));
        if (is_wide) {
            const __m512i low = _mm512_mask_i32gather_epi64(none, (__mmask8)exists, _mm512_castsi512_si256(slot), slots, 8);
            const __m512i high = _mm512_mask_i32gather_epi64(none, (__mmask8)(exists >> 8), _mm512_extracti64x4_epi64(slot, 1), slots, 8);
            step = _mm512_permutex2var_epi32(low, even, high);
            symbol = _mm512_permutex2var_epi32(low, odd, high);
        } else {
            step = _mm512_mask_i32gather_epi32(none, exists, slot, slots, 4);
            symbol = _mm512_srli_epi32(step, 24);
        }
        __m512i less = _mm512_mullo_epi32(_mm512_srl_epi32(x, precision), _mm512_and_si512(step, mask));
        less = _mm512_add_epi32(less, _mm512_and_si512(_mm512_srl_epi32(step, precision), mask));
        x = _mm512_sub_epi32(x, less);
        const __mmask16 is_low = _mm512_mask_cmplt_epu32_mask(exists, x, lowest);
        __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)next));
        words = _mm512_maskz_expand_epi32(is_low, words);
        x = _mm512_mask_or_epi32(x, is_low, _mm512_slli_epi32(x, 16), words);
        next += 2 * _mm_popcnt_u32(is_low);
        _mm512_mask_storeu_epi32(xs + t, exists, x);
        if (has_trellis) {
            const __m512i flip = _mm512_castps_si512(_mm512_permutevar_ps(flips, symbol));
            _mm512_mask_storeu_epi32(states + t, exists, _mm512_xor_si512(_mm512_srli_epi32(s, 1), flip));
        }
        _mm512_storeu_ps(out + t, has_book ? _mm512_mask_i32gather_ps(_mm512_setzero_ps(), exists, symbol, book, 4)
                                           : _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(symbol, zero)), size));
    }
    l->next = next;
    if (t < last)
        step_scalar(l, t, last, first_slot, out, is_wide, has_book, has_trellis);
}
#endif

/* The eight kernels of an instruction set: by whether slots are wide, there is a book, there is a trellis. */
#define KERNEL(set, attributes, w, k, s)                                                                              \
    attributes static void set##_##w##k##s(Lanes *l, int64_t first, int64_t last, const uint32_t *slot, float *out)   \
    {                                                                                                                 \
        step_##set(l, first, last, slot, out, w, k, s);                                                               \
    }
#define KERNELS(set, attributes)                                                                                      \
    KERNEL(set, attributes, 0, 0, 0) KERNEL(set, attributes, 0, 0, 1) KERNEL(set, attributes, 0, 1, 0)                \
    KERNEL(set, attributes, 0, 1, 1) KERNEL(set, attributes, 1, 0, 0) KERNEL(set, attributes, 1, 0, 1)                \
    KERNEL(set, attributes, 1, 1, 0) KERNEL(set, attributes, 1, 1, 1)
#define NAMES(set) {set##_000, set##_001, set##_010, set##_011, set##_100, set##_101, set##_110, set##_111}

KERNELS(scalar, )
#ifdef HAS_X86
KERNELS(avx2, TARGET_AVX2)
KERNELS(avx512, TARGET_AVX512)
static Step *const STEPS[N_INSTRUCTION_SETS][8] = {NAMES(scalar), NAMES(avx2), NAMES(avx512)};
#else
static Step *const STEPS[N_INSTRUCTION_SETS][8] = {NAMES(scalar), NAMES(scalar), NAMES(scalar)};
#endif

#endif
