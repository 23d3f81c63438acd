/* The steps of the lanes of a trellis stage in vectors of x86; for trellis_kernels.h only.

   How a vector takes words from a stream: Bonfield, htscodecs, rANS 32x16. */

#ifndef VQFORMAT_TRELLIS_VECTORS_H
#define VQFORMAT_TRELLIS_VECTORS_H

#include "trellis_steps.h"

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

/* The slots of eight lanes from ``t`` on: their steps, or these and their symbols. Narrow slots are read one by one:
   where gathers are made of many operations, as in Zen 4, that is faster. */
TARGET_AVX2
static ALWAYS_INLINE void find_avx2(Common c, int64_t t, const void *slots, const uint32_t *first_slot, uint32_t *steps,
                                    uint32_t *symbols, PARTS)
{
    (void)has_book;
    __m256i slot = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(c.x + t)), c.mask);
    if (has_trellis) {
        const __m256i q = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(c.state + t)), c.one);
        slot = _mm256_or_si256(slot, _mm256_sllv_epi32(q, c.precision));
    }
    if (first_slot)
        slot = _mm256_add_epi32(slot, _mm256_loadu_si256((const __m256i *)(first_slot + t)));
    if (is_wide) {
        const __m256i none = _mm256_setzero_si256();
        const __m256i order = _mm256_permute4x64_epi64(slot, 0xD8); /* lanes 0 1 4 5, 2 3 6 7 */
        const __m256i some = _mm256_mask_i32gather_epi64(none, slots, _mm256_castsi256_si128(order), c.all, 8);
        const __m256i others = _mm256_mask_i32gather_epi64(none, slots, _mm256_extracti128_si256(order, 1), c.all, 8);
        const __m256 some_halves = _mm256_castsi256_ps(some), other_halves = _mm256_castsi256_ps(others);
        _mm256_storeu_ps((float *)(steps + t), _mm256_shuffle_ps(some_halves, other_halves, 0x88));
        _mm256_storeu_ps((float *)(symbols + t), _mm256_shuffle_ps(some_halves, other_halves, 0xDD));
    } else {
        uint32_t places[8] __attribute__((aligned(32)));
        _mm256_store_si256((__m256i *)places, slot);
        for (int k = 0; k < 8; k++)
            steps[t + k] = ((const uint32_t *)slots)[places[k]];
    }
}

/* Eight lanes from ``t`` on. ``has_code``: of these lanes; or NULL: all have a code. Returns the next word. */
TARGET_AVX2
static ALWAYS_INLINE const uint8_t *eight_avx2(Common c, int64_t t, const uint32_t *steps, const uint32_t *symbols,
                                               const uint32_t *has_code, float *values, const uint8_t *next, PARTS)
{
    const __m256i none = _mm256_setzero_si256();
    const __m256i exists = has_code ? _mm256_loadu_si256((const __m256i *)has_code) : none;
    const __m256i old = _mm256_loadu_si256((const __m256i *)(c.x + t));
    const __m256i step = _mm256_loadu_si256((const __m256i *)(steps + t));
    __m256i symbol = is_wide ? _mm256_loadu_si256((const __m256i *)(symbols + t)) : _mm256_srli_epi32(step, 24);
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
        const __m256i s = _mm256_loadu_si256((const __m256i *)(c.state + t));
        symbol = _mm256_or_si256(_mm256_add_epi32(symbol, symbol), _mm256_and_si256(s, c.one));
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
static ALWAYS_INLINE void run_avx2(Lanes *l, const Run *run, Step *step_rest, PARTS)
{
    const TrellisBlock *b = l->block;
    const Common c = {l->x, l->state, b->book, _mm256_set1_epi32(b->precision),
                      _mm256_set1_epi32((1 << b->precision) - 1), _mm256_set1_epi32(1), _mm256_set1_epi32(16),
                      _mm256_set1_epi32(b->zero), _mm256_set1_ps(b->step),
                      _mm256_broadcast_ps((const __m128 *)l->flips), all_lanes()};
    const uint8_t *next = l->next, *const end = l->end;
    const uint32_t *const first_slot = run->first_slot;
    const int64_t n = run->n, n_whole = run->has_code ? 0 : n / 8 * 8;
    uint32_t steps[CHUNK], symbols[CHUNK];
    for (int64_t k = 0; k < run->n_steps; k++) {
        const void *const slots = run->slots[k];
        float *const values = run->values[k];
        prefetch_ahead(run, k);
        for (int64_t first = 0, t; first < n; first += CHUNK) {
            const int64_t last = first + CHUNK < n ? first + CHUNK : n, whole = n_whole < last ? n_whole : last;
            for (t = first; t < last; t += 8)
                find_avx2(c, t, slots, first_slot, steps - first, symbols - first, is_wide, has_book, has_trellis);
            for (t = first; t < whole && end - next >= 16; t += 8)
                next = eight_avx2(c, t, steps - first, symbols - first, NULL, values, next, is_wide, has_book, has_trellis);
            for (; t < last && end - next >= 16; t += 8) {
                const uint32_t *has_code = run->has_code ? run->has_code + t : EXISTS + 8 - (n - t);
                next = eight_avx2(c, t, steps - first, symbols - first, has_code, values, next, is_wide, has_book, has_trellis);
            }
            if (t < last) {
                l->next = next;
                step_rest(l, run, k, t);
                next = l->next;
                break;
            }
        }
    }
    l->next = next;
}

/* As ``Common``, for sixteen lanes. */
typedef struct {
    uint32_t *x, *state;
    const float *book;
    __m512i precision, mask, zero;
    __m512 size, flips;
} Common16;

/* As ``find_avx2``, of sixteen lanes. */
TARGET_AVX512
static ALWAYS_INLINE void find_avx512(Common16 c, int64_t t, const void *slots, const uint32_t *first_slot,
                                      uint32_t *steps, uint32_t *symbols, PARTS)
{
    (void)has_book;
    const __m512i none = _mm512_setzero_si512(), one = _mm512_set1_epi32(1);
    __m512i slot = _mm512_and_si512(_mm512_loadu_si512(c.x + t), c.mask);
    if (has_trellis) {
        const __m512i q = _mm512_and_si512(_mm512_loadu_si512(c.state + t), one);
        slot = _mm512_or_si512(slot, _mm512_sllv_epi32(q, c.precision));
    }
    if (first_slot)
        slot = _mm512_add_epi32(slot, _mm512_loadu_si512(first_slot + t));
    if (is_wide) {
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_add_epi32(even, one);
        const __m512i low = _mm512_mask_i32gather_epi64(none, 0xFF, _mm512_castsi512_si256(slot), slots, 8);
        const __m512i high = _mm512_mask_i32gather_epi64(none, 0xFF, _mm512_extracti64x4_epi64(slot, 1), slots, 8);
        _mm512_storeu_si512(steps + t, _mm512_permutex2var_epi32(low, even, high));
        _mm512_storeu_si512(symbols + t, _mm512_permutex2var_epi32(low, odd, high));
    } else {
        _mm512_storeu_si512(steps + t, _mm512_mask_i32gather_epi32(none, 0xFFFF, slot, slots, 4));
    }
}

/* Sixteen lanes from ``t`` on. ``is_whole``: whether all of them have a code; else ``exists`` says which. Returns the next
   word. */
TARGET_AVX512
static ALWAYS_INLINE const uint8_t *sixteen_avx512(Common16 c, int64_t t, const uint32_t *steps, const uint32_t *symbols,
                                                   int is_whole, __mmask16 exists, float *values, const uint8_t *next,
                                                   PARTS)
{
    const __m512i one = _mm512_set1_epi32(1), lowest = _mm512_set1_epi32((int)LOWEST);
    const __m512i step = _mm512_loadu_si512(steps + t);
    __m512i symbol = is_wide ? _mm512_loadu_si512(symbols + t) : _mm512_srli_epi32(step, 24);
    __m512i x = _mm512_loadu_si512(c.x + t);
    __m512i less = _mm512_mullo_epi32(_mm512_srlv_epi32(x, c.precision), _mm512_and_si512(step, c.mask));
    less = _mm512_add_epi32(less, _mm512_and_si512(_mm512_srlv_epi32(step, c.precision), c.mask));
    x = _mm512_sub_epi32(x, less);
    const __mmask16 is_low = is_whole ? _mm512_cmplt_epu32_mask(x, lowest)
                                      : _mm512_mask_cmplt_epu32_mask(exists, x, lowest);
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)next));
    words = _mm512_maskz_expand_epi32(is_low, words);
    x = _mm512_mask_or_epi32(x, is_low, _mm512_slli_epi32(x, 16), words);
    if (is_whole)
        _mm512_storeu_si512(c.x + t, x);
    else
        _mm512_mask_storeu_epi32(c.x + t, exists, x);
    if (has_trellis) {
        __m512i s = _mm512_loadu_si512(c.state + t);
        symbol = _mm512_or_si512(_mm512_add_epi32(symbol, symbol), _mm512_and_si512(s, one));
        const __m512i flip = _mm512_castps_si512(_mm512_permutevar_ps(c.flips, symbol));
        s = _mm512_xor_si512(_mm512_srli_epi32(s, 1), flip);
        if (is_whole)
            _mm512_storeu_si512(c.state + t, s);
        else
            _mm512_mask_storeu_epi32(c.state + t, exists, s);
    }
    const __m512 value = has_book ? _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xFFFF, symbol, c.book, 4)
                                  : _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(symbol, c.zero)), c.size);
    if (is_whole)
        _mm512_storeu_ps(values + t, value);
    else
        _mm512_mask_storeu_ps(values + t, exists, value);
    return next + 2 * (size_t)_mm_popcnt_u32(is_low);
}

TARGET_AVX512
static ALWAYS_INLINE void run_avx512(Lanes *l, const Run *run, Step *step_rest, PARTS)
{
    const TrellisBlock *b = l->block;
    const Common16 c = {l->x, l->state, b->book, _mm512_set1_epi32(b->precision),
                        _mm512_set1_epi32((1 << b->precision) - 1), _mm512_set1_epi32(b->zero), _mm512_set1_ps(b->step),
                        _mm512_broadcast_f32x4(_mm_loadu_ps((const float *)l->flips))};
    const uint8_t *next = l->next, *const end = l->end;
    const uint32_t *const first_slot = run->first_slot;
    const int64_t n = run->n, n_whole = run->has_code ? 0 : n / 16 * 16;
    uint32_t steps[CHUNK], symbols[CHUNK];
    for (int64_t k = 0; k < run->n_steps; k++) {
        const void *const slots = run->slots[k];
        float *const values = run->values[k];
        prefetch_ahead(run, k);
        for (int64_t first = 0, t; first < n; first += CHUNK) {
            const int64_t last = first + CHUNK < n ? first + CHUNK : n, whole = n_whole < last ? n_whole : last;
            for (t = first; t < last; t += 16)
                find_avx512(c, t, slots, first_slot, steps - first, symbols - first, is_wide, has_book, has_trellis);
            for (t = first; t < whole && end - next >= 32; t += 16)
                next = sixteen_avx512(c, t, steps - first, symbols - first, 1, 0xFFFF, values, next, is_wide, has_book,
                                      has_trellis);
            for (; t < last && end - next >= 32; t += 16) {
                const __mmask16 exists = run->has_code ? _mm512_movepi32_mask(_mm512_loadu_si512(run->has_code + t))
                                                       : (__mmask16)((1u << (n - t)) - 1);
                next = sixteen_avx512(c, t, steps - first, symbols - first, 0, exists, values, next, is_wide, has_book,
                                      has_trellis);
            }
            if (t < last) {
                l->next = next;
                step_rest(l, run, k, t);
                next = l->next;
                break;
            }
        }
    }
    l->next = next;
}

#endif
