/* The steps of a Viterbi search over LANES sequences side by side, for each instruction set; see viterbi.c. */

#ifndef VQFORMAT_VITERBI_STEPS_H
#define VQFORMAT_VITERBI_STEPS_H

#include "viterbi_metrics.h"

/* Vectors of eight for every processor: compilers do not make them of a loop over the lanes of a state. */
#if defined(__GNUC__)
enum { PART = 8 };
typedef int16_t Part __attribute__((vector_size(16), may_alias));
static const Part BITS = {1, 2, 4, 8, 16, 32, 64, 128};
static ALWAYS_INLINE Part is_less(Part a, Part b) { return a < b; }
static ALWAYS_INLINE uint16_t united(Part bits)
{
    uint64_t halves[2];
    memcpy(halves, &bits, sizeof bits);
    uint64_t all = halves[0] | halves[1];
    all |= all >> 32;
    return (uint16_t)(all | all >> 16);
}
#else
enum { PART = 1 };
typedef int16_t Part;
static const Part BITS = 1;
static Part is_less(Part a, Part b) { return a < b ? -1 : 0; }
static uint16_t united(Part bits) { return (uint16_t)bits; }
#endif
static ALWAYS_INLINE Part chosen_by(Part is_second, Part first, Part second)
{
    return (Part)((is_second & second) | (~is_second & first));
}

/* One step of all paths, from the costs ``from`` to the costs ``to``. */
static ALWAYS_INLINE void advance_scalar(Lanes *l, const int16_t *from, int16_t *to, uint16_t *takes_second)
{
    const int n = l->search->n_states / 2;
    for (int half = 0; half < l->n_used / HALF; half++) {
        for (int k = half * HALF; k < (half + 1) * HALF; k += PART)
            for (int subset = 0; subset < N_SUBSETS; subset++)
                *(Part *)(l->metric[subset] + k) -= *(const Part *)(from + k);
        for (int i = 0; i < n; i++) {
            const Butterfly b = l->butterflies[i];
            const int q = i >= n / 2;
            Part even = BITS ^ BITS, odd = even;
            for (int k = half * HALF; k < (half + 1) * HALF; k += PART) {
                const Part low = *(const Part *)(from + b.low + k), high = *(const Part *)(from + b.high + k);
                const Part of_even = *(const Part *)(l->metric[q] + k), of_odd = *(const Part *)(l->metric[2 + q] + k);
                const Part first = low + of_even, second = high + of_odd;
                const Part odd_first = low + of_odd, odd_second = high + of_even;
                const Part is_second = is_less(second, first), is_odd_second = is_less(odd_second, odd_first);
                const Part bits = (Part)(BITS << (k - half * HALF));
                even |= is_second & bits, odd |= is_odd_second & bits;
                *(Part *)(to + b.of_even + k) = chosen_by(is_second, first, second);
                *(Part *)(to + b.of_odd + k) = chosen_by(is_odd_second, odd_first, odd_second);
            }
            takes_second[2 * i * HALVES + half] = united(even);
            takes_second[(2 * i + 1) * HALVES + half] = united(odd);
        }
    }
}

/* One step back of all sequences, whose states are ``state``. */
static ALWAYS_INLINE void go_back_scalar(const Lanes *l, int32_t *state, const uint16_t *takes_second,
                                         const int16_t (*chosen)[LANES], int16_t *indices, uint8_t *books)
{
    for (int k = 0; k < l->n_used; k++) {
        const int is_second = takes_second[l->slots[state[k]] * HALVES + k / HALF] >> k % HALF & 1;
        const int32_t way = l->ways[is_second][state[k]];
        state[k] = way / N_SUBSETS;
        indices[k] = chosen[way % N_SUBSETS][k];
        books[k] = way & 1;
    }
}

#ifdef HAS_X86
/* A bit for each lane whose 16 bits are set, given both halves. */
TARGET_AVX2 static ALWAYS_INLINE uint32_t united_avx2(__m256i left, __m256i right)
{
    const __m256i packed = _mm256_packs_epi16(left, right);
    return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0)));
}

TARGET_AVX2 static ALWAYS_INLINE void advance_avx2(Lanes *l, const int16_t *from, int16_t *to, uint16_t *takes_second)
{
    const int n = l->search->n_states / 4;
    const Butterfly *butterflies = l->butterflies;
    for (int q = 0; q < 2; q++) {
        __m256i of_even[HALVES], of_odd[HALVES];
        for (int half = 0; half < HALVES; half++) {
            const __m256i before = _mm256_load_si256((const __m256i *)(from + half * HALF));
            const int16_t *even = l->metric[q] + half * HALF, *odd = l->metric[2 + q] + half * HALF;
            of_even[half] = _mm256_sub_epi16(_mm256_load_si256((const __m256i *)even), before);
            of_odd[half] = _mm256_sub_epi16(_mm256_load_si256((const __m256i *)odd), before);
        }
        for (int i = 0; i < n; i++) {
            const Butterfly b = butterflies[i];
            __m256i even[HALVES], odd[HALVES];
            for (int half = 0; half < HALVES; half++) {
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

TARGET_AVX512 static ALWAYS_INLINE void advance_avx512(Lanes *l, const int16_t *from, int16_t *to,
                                                       uint16_t *takes_second)
{
    const int n = l->search->n_states / 4;
    const Butterfly *butterflies = l->butterflies;
    const __m512i before = _mm512_load_si512(from);
    for (int q = 0; q < 2; q++) {
        const __m512i of_even = _mm512_sub_epi16(_mm512_load_si512(l->metric[q]), before);
        const __m512i of_odd = _mm512_sub_epi16(_mm512_load_si512(l->metric[2 + q]), before);
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
                                                       const int16_t (*chosen)[LANES], int16_t *indices, uint8_t *books)
{
    const __m512i three = _mm512_set1_epi32(N_SUBSETS - 1), one = _mm512_set1_epi32(1);
    for (int k = 0; k < l->n_used; k += 16) {
        const __m512i first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m512i numbers = _mm512_add_epi32(first, _mm512_set1_epi32(k));
        const __m512i at = _mm512_loadu_si512(state + k);
        const __m512i bits = _mm512_i32gather_epi32(_mm512_i32gather_epi32(at, l->slots, 4), takes_second, 4);
        const __m512i is_second = _mm512_and_si512(_mm512_srlv_epi32(bits, numbers), one);
        const __m512i place = _mm512_add_epi32(at, _mm512_mullo_epi32(is_second, _mm512_set1_epi32(MAX_STATES)));
        const __m512i way = _mm512_i32gather_epi32(place, l->ways[0], 4);
        const __m512i subset = _mm512_and_si512(way, three);
        const __m512i of_subset = _mm512_mullo_epi32(subset, _mm512_set1_epi32(LANES));
        const __m512i index = _mm512_i32gather_epi32(_mm512_add_epi32(of_subset, numbers), chosen, 2);
        _mm512_storeu_si512(state + k, _mm512_srli_epi32(way, 2));
        _mm256_storeu_si256((__m256i *)(indices + k), _mm512_cvtepi32_epi16(index));
        _mm_storeu_si128((__m128i *)(books + k), _mm512_cvtepi32_epi8(_mm512_and_si512(way, one)));
    }
}
#endif

#endif
