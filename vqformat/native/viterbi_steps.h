/* The steps of a Viterbi search over LANES sequences side by side, for each instruction set; see viterbi.c. */

#ifndef VQFORMAT_VITERBI_STEPS_H
#define VQFORMAT_VITERBI_STEPS_H

#include "viterbi_metrics.h"

/* Vectors of eight for every processor: compilers do not make them of a loop over the lanes of a state. */
#if defined(__GNUC__)
enum { PART = 8, PARTS = HALF / PART };
typedef int16_t Part __attribute__((vector_size(16), may_alias));
static ALWAYS_INLINE Part is_less(Part a, Part b) { return a < b; }
#else
enum { PART = 1, PARTS = HALF / PART };
typedef int16_t Part;
static Part is_less(Part a, Part b) { return a < b ? -1 : 0; }
#endif

/* A bit for each lane of a half whose 16 bits are set. */
static ALWAYS_INLINE uint16_t united(const Part *parts)
{
#ifdef HAS_X86
    return (uint16_t)_mm_movemask_epi8(_mm_packs_epi16((__m128i)parts[0], (__m128i)parts[1]));
#elif defined(__GNUC__)
    static const Part bits = {1, 2, 4, 8, 16, 32, 64, 128};
    const Part both = (parts[0] & bits) | (parts[1] & bits << 8);
    uint64_t halves[2];
    memcpy(halves, &both, sizeof both);
    uint64_t all = halves[0] | halves[1];
    all |= all >> 32;
    return (uint16_t)(all | all >> 16);
#else
    unsigned bits = 0;
    for (int k = 0; k < PARTS; k++)
        bits |= (unsigned)(parts[k] & 1) << k;
    return (uint16_t)bits;
#endif
}

/* The lesser of each two, given which is less. */
static ALWAYS_INLINE Part least(Part is_second, Part first, Part second)
{
#ifdef HAS_X86
    (void)is_second;
    return (Part)_mm_min_epi16((__m128i)first, (__m128i)second);
#else
    return (Part)((is_second & second) | (~is_second & first));
#endif
}

/* One step of all paths, from the costs ``from`` to the costs ``to``. */
static ALWAYS_INLINE void advance_scalar(const Lanes *l, int16_t (*metric)[LANES], const int16_t *from, int16_t *to,
                                         uint16_t *takes_second)
{
    const int n = l->search->n_states / 2;
    for (int half = 0; half < (l->n + HALF - 1) / HALF; half++) {
        for (int k = half * HALF; k < (half + 1) * HALF; k += PART)
            for (int subset = 0; subset < N_SUBSETS; subset++)
                *(Part *)(metric[subset] + k) -= *(const Part *)(from + k);
        for (int i = 0; i < n; i++) {
            const Butterfly b = l->butterflies[i];
            const int q = i >= n / 2;
            Part even[PARTS], odd[PARTS];
            for (int part = 0; part < PARTS; part++) {
                const int k = half * HALF + part * PART;
                const Part low = *(const Part *)(from + b.low + k), high = *(const Part *)(from + b.high + k);
                const Part of_even = *(const Part *)(metric[q] + k), of_odd = *(const Part *)(metric[2 + q] + k);
                const Part first = low + of_even, second = high + of_odd;
                const Part odd_first = low + of_odd, odd_second = high + of_even;
                even[part] = is_less(second, first), odd[part] = is_less(odd_second, odd_first);
                *(Part *)(to + b.of_even + k) = least(even[part], first, second);
                *(Part *)(to + b.of_odd + k) = least(odd[part], odd_first, odd_second);
            }
            takes_second[2 * i * HALVES + half] = united(even);
            takes_second[(2 * i + 1) * HALVES + half] = united(odd);
        }
    }
}

/* One step back of all sequences, whose states are ``state``. Finds the subsets of points. */
static ALWAYS_INLINE void go_back_scalar(const Lanes *l, int32_t *state, const uint16_t *takes_second, uint8_t *subsets)
{
    const int32_t last = l->search->n_states / 2;
    for (int k = 0; k < l->n; k++) {
        /* No branches: they could not be predicted */
        const int32_t is_second = takes_second[l->slots[state[k]] * HALVES + k / HALF] >> k % HALF & 1;
        const int32_t q = state[k] >= last;
        const int32_t half = state[k] ^ (l->feedback & -q); /* that of the predecessor for an even code */
        const int32_t parity = is_second ^ ((half & l->highest) != 0);
        state[k] = 2 * (half ^ (l->forward & -parity)) + q;
        subsets[k] = (uint8_t)(2 * parity + q);
    }
}

/* The indices and codebooks of points of these subsets. There are no conditions and no arrays that may overlap, so
   compilers make vectors of it. */
static ALWAYS_INLINE void choose(const uint8_t *subsets, const int16_t (*chosen)[CHUNK], int16_t *indices,
                                 uint8_t *books)
{
    int16_t q[CHUNK], parity[CHUNK], found[CHUNK];
    uint8_t of_subsets[CHUNK];
    for (int c = 0; c < CHUNK; c++) {
        q[c] = (int16_t) - (subsets[c] & 1), parity[c] = (int16_t) - (subsets[c] >> 1);
        of_subsets[c] = subsets[c] & 1;
    }
    for (int c = 0; c < CHUNK; c++) {
        const int16_t even = (int16_t)(chosen[0][c] ^ ((chosen[0][c] ^ chosen[1][c]) & q[c]));
        const int16_t odd = (int16_t)(chosen[2][c] ^ ((chosen[2][c] ^ chosen[3][c]) & q[c]));
        found[c] = (int16_t)(even ^ ((even ^ odd) & parity[c]));
    }
    memcpy(indices, found, sizeof found), memcpy(books, of_subsets, sizeof of_subsets);
}

#ifdef HAS_X86
/* A bit for each lane whose 16 bits are set, given both halves. Lanes 8 to 15 and 16 to 23 change places. */
TARGET_AVX2 static ALWAYS_INLINE uint32_t united_avx2(__m256i left, __m256i right)
{
    return (uint32_t)_mm256_movemask_epi8(_mm256_packs_epi16(left, right));
}

TARGET_AVX2 static ALWAYS_INLINE void advance_halves_avx2(const Lanes *l, int16_t (*metric)[LANES], const int16_t *from,
                                                          int16_t *to, uint16_t *takes_second, const int n_halves)
{
    const int n = l->search->n_states / 4;
    const Butterfly *butterflies = l->butterflies;
    for (int q = 0; q < 2; q++) {
        __m256i of_even[HALVES], of_odd[HALVES];
        for (int half = 0; half < n_halves; half++) {
            const __m256i before = _mm256_load_si256((const __m256i *)(from + half * HALF));
            const int16_t *even = metric[q] + half * HALF, *odd = metric[2 + q] + half * HALF;
            of_even[half] = _mm256_sub_epi16(_mm256_load_si256((const __m256i *)even), before);
            of_odd[half] = _mm256_sub_epi16(_mm256_load_si256((const __m256i *)odd), before);
        }
        for (int i = 0; i < n; i++) {
            const Butterfly b = butterflies[i];
            __m256i even[HALVES] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, odd[HALVES] = {even[0], even[1]};
            for (int half = 0; half < n_halves; half++) {
                const int k = half * HALF;
                const __m256i low = _mm256_load_si256((const __m256i *)(from + b.low + k));
                const __m256i high = _mm256_load_si256((const __m256i *)(from + b.high + k));
                const __m256i first = _mm256_add_epi16(low, of_even[half]);
                const __m256i second = _mm256_add_epi16(high, of_odd[half]);
                const __m256i odd_first = _mm256_add_epi16(low, of_odd[half]);
                const __m256i odd_second = _mm256_add_epi16(high, of_even[half]);
                even[half] = _mm256_cmpgt_epi16(first, second), odd[half] = _mm256_cmpgt_epi16(odd_first, odd_second);
                _mm256_store_si256((__m256i *)(to + b.of_even + k), _mm256_min_epi16(second, first));
                _mm256_store_si256((__m256i *)(to + b.of_odd + k), _mm256_min_epi16(odd_second, odd_first));
            }
            const uint32_t bits[2] = {united_avx2(even[0], even[1]), united_avx2(odd[0], odd[1])};
            memcpy(takes_second + 2 * i * HALVES, bits, sizeof bits);
        }
        butterflies += n, takes_second += 2 * n * HALVES;
    }
}

TARGET_AVX2 static ALWAYS_INLINE void advance_avx2(const Lanes *l, int16_t (*metric)[LANES], const int16_t *from,
                                                   int16_t *to, uint16_t *takes_second)
{
    if (l->n > HALF)
        advance_halves_avx2(l, metric, from, to, takes_second, HALVES);
    else
        advance_halves_avx2(l, metric, from, to, takes_second, 1);
}

TARGET_AVX2 static ALWAYS_INLINE void go_back_avx2(const Lanes *l, int32_t *state, const uint16_t *takes_second,
                                                   uint8_t *subsets)
{
    const __m256i zero = _mm256_setzero_si256(), last = _mm256_set1_epi32(l->search->n_states / 2 - 1);
    const __m256i feedback = _mm256_set1_epi32(l->feedback), forward = _mm256_set1_epi32(l->forward);
    const __m256i highest = _mm256_set1_epi32(l->highest);
    const __m256i first_bits = _mm256_set_epi32(1 << 7, 1 << 6, 1 << 5, 1 << 4, 1 << 3, 1 << 2, 1 << 1, 1);
    __m256i found[LANES / 8];
    for (int part = 0; part < LANES / 8; part++) {
        const int first_bit = part == 1 ? 16 : part == 2 ? 8 : 8 * part; /* see united_avx2 */
        const __m256i bit = _mm256_slli_epi32(first_bits, first_bit);
        const __m256i at = _mm256_loadu_si256((const __m256i *)(state + 8 * part));
        const __m256i slots = _mm256_i32gather_epi32(l->slots, at, 4);
        const __m256i bits = _mm256_and_si256(_mm256_i32gather_epi32((const int *)takes_second, slots, 4), bit);
        const __m256i q = _mm256_cmpgt_epi32(at, last);
        const __m256i half = _mm256_xor_si256(at, _mm256_and_si256(q, feedback));
        const __m256i is_second = _mm256_cmpeq_epi32(bits, bit);
        const __m256i parity = _mm256_xor_si256(is_second, _mm256_cmpgt_epi32(_mm256_and_si256(half, highest), zero));
        const __m256i before = _mm256_xor_si256(half, _mm256_and_si256(parity, forward));
        _mm256_storeu_si256((__m256i *)(state + 8 * part), _mm256_sub_epi32(_mm256_add_epi32(before, before), q));
        found[part] = _mm256_sub_epi32(zero, _mm256_add_epi32(q, _mm256_add_epi32(parity, parity)));
    }
    const __m256i low = _mm256_packs_epi32(found[0], found[1]), high = _mm256_packs_epi32(found[2], found[3]);
    const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
    _mm256_storeu_si256((__m256i *)subsets, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
}

TARGET_AVX512 static ALWAYS_INLINE void advance_avx512(const Lanes *l, int16_t (*metric)[LANES], const int16_t *from,
                                                       int16_t *to, uint16_t *takes_second)
{
    const int n = l->search->n_states / 4;
    const Butterfly *butterflies = l->butterflies;
    const __m512i before = _mm512_load_si512(from);
    for (int q = 0; q < 2; q++) {
        const __m512i of_even = _mm512_sub_epi16(_mm512_load_si512(metric[q]), before);
        const __m512i of_odd = _mm512_sub_epi16(_mm512_load_si512(metric[2 + q]), before);
        for (int i = 0; i < n; i++) {
            const Butterfly b = butterflies[i];
            const __m512i low = _mm512_load_si512(from + b.low), high = _mm512_load_si512(from + b.high);
            const __m512i first = _mm512_add_epi16(low, of_even), second = _mm512_add_epi16(high, of_odd);
            const __m512i odd_first = _mm512_add_epi16(low, of_odd), odd_second = _mm512_add_epi16(high, of_even);
            _store_mask32((__mmask32 *)(takes_second + 2 * i * HALVES), _mm512_cmplt_epi16_mask(second, first));
            _store_mask32((__mmask32 *)(takes_second + (2 * i + 1) * HALVES),
                          _mm512_cmplt_epi16_mask(odd_second, odd_first));
            _mm512_store_si512(to + b.of_even, _mm512_min_epi16(second, first));
            _mm512_store_si512(to + b.of_odd, _mm512_min_epi16(odd_second, odd_first));
        }
        butterflies += n, takes_second += 2 * n * HALVES;
    }
}

TARGET_AVX512 static ALWAYS_INLINE void go_back_avx512(const Lanes *l, int32_t *state, const uint16_t *takes_second,
                                                       uint8_t *subsets)
{
    const __m512i one = _mm512_set1_epi32(1), last = _mm512_set1_epi32(l->search->n_states / 2);
    const __m512i feedback = _mm512_set1_epi32(l->feedback), forward = _mm512_set1_epi32(l->forward);
    const __m512i highest = _mm512_set1_epi32(l->highest);
    for (int k = 0; k < LANES; k += 16) {
        const __m512i first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m512i bit = _mm512_sllv_epi32(one, _mm512_add_epi32(first, _mm512_set1_epi32(k)));
        const __m512i at = _mm512_loadu_si512(state + k);
        const __mmask16 q = _mm512_cmpge_epi32_mask(at, last);
        const __m512i half = _mm512_mask_xor_epi32(at, q, at, feedback);
        const __m512i bits = _mm512_i32gather_epi32(_mm512_i32gather_epi32(at, l->slots, 4), takes_second, 4);
        const __mmask16 is_second = _mm512_test_epi32_mask(bits, bit);
        const __mmask16 parity = is_second ^ _mm512_test_epi32_mask(half, highest);
        const __m512i before = _mm512_mask_xor_epi32(half, parity, half, forward);
        const __m512i subset = _mm512_mask_add_epi32(_mm512_maskz_mov_epi32(q, one), parity,
                                                     _mm512_maskz_mov_epi32(q, one), _mm512_set1_epi32(2));
        _mm512_storeu_si512(state + k, _mm512_mask_add_epi32(_mm512_slli_epi32(before, 1), q,
                                                             _mm512_slli_epi32(before, 1), one));
        _mm_storeu_si128((__m128i *)(subsets + k), _mm512_cvtepi32_epi8(subset));
    }
}
#endif

#endif
