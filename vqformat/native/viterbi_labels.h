/* The search of one sequence, for each instruction set that has one: lanes are states. Where few sequences are left,
   most lanes of viterbi_steps.h would be idle; see viterbi.c.

   The state after s is A s ^ parity * forward. Here A is a linear map of bits: A s = s >> 1 ^ q * feedback, where q is
   the lowest bit of s. The label of a state s before step n is A^-n s. So a code of even parity leads from a label to
   itself, and one of odd parity to the label of its partner, which differs from it in the same bits for all labels:
   those of A^-(n + 1) forward. Thus costs stay in their places. What depends on some bits of a state is the parity of
   other bits of its label; which bits, changes from step to step. A^N is 1 for some N below the number of states (Lidl
   and Niederreiter 1986, "Introduction to finite fields and their applications", lemma 3.1), so steps repeat. */

#ifndef VQFORMAT_VITERBI_LABELS_H
#define VQFORMAT_VITERBI_LABELS_H

#include "viterbi_steps.h"

#ifdef HAS_X86

enum { WORD = 32, WORDS = MAX_STATES / WORD, PLACES = 16 };

/* A step of the trellis. Each attribute is a set of bits of a label. */
typedef struct {
    uint8_t partner; /* the bits in which partners differ */
    uint8_t book;    /* their parity is the codebook; it is the same for partners */
    uint8_t late;    /* their parity tells who wins a tie: 0 for the path from the label itself, 1 for its partner's */
} Turn;

typedef struct {
    int16_t cost[2][MAX_STATES];              /* as in ``Lanes``, by label */
    int16_t metric[CHUNK][2 * N_SUBSETS];     /* of subsets 0 1, 1 0, 2 3, 3 2 */
    int16_t masks[PLACES][PLACES];            /* at [i][k]: -1 if the parity of i & k is odd, else 0 */
    uint8_t parities[PLACES][PLACES];         /* at [i][k]: this parity */
    uint32_t words[WORD];                     /* bit k of number i: the parity of i & k */
    Turn turns[MAX_STATES];
    int n_turns;
    uint8_t labels[MAX_STATES];               /* of the states after the last step */
    uint32_t *takes_partner;                  /* (n_steps, WORDS): a bit for each label */
    int16_t (*chosen)[N_SUBSETS][CHUNK];      /* (n_chunks,): the index of the best point of each subset */
} __attribute__((aligned(CACHE_LINE))) Labels;

static unsigned parity(unsigned bits) { return (unsigned)__builtin_parity(bits); }

/* A^-1 of a state. */
static unsigned state_before(const Search *s, unsigned state)
{
    const unsigned q = state >= (unsigned)s->n_states / 2;
    return ((state ^ (q ? s->feedback : 0)) << 1 & ((unsigned)s->n_states - 1)) | q;
}

/* The bits of a state whose parity is that of the given bits of A s. */
static unsigned bits_before(const Search *s, unsigned bits)
{
    return (bits << 1 & ((unsigned)s->n_states - 1)) | parity(bits & s->feedback);
}

static void find_turns(Labels *l, const Search *s)
{
    for (unsigned i = 0; i < PLACES; i++)
        for (unsigned k = 0; k < PLACES; k++)
            l->parities[i][k] = (uint8_t)parity(i & k), l->masks[i][k] = parity(i & k) ? -1 : 0;
    for (unsigned i = 0; i < WORD; i++) {
        l->words[i] = 0;
        for (unsigned k = 0; k < WORD; k++)
            l->words[i] |= (uint32_t)parity(i & k) << k;
    }
    const unsigned bit = highest_bit(s->forward), of_book = (unsigned)s->n_states / 2;
    const unsigned late_after = s->feedback & bit ? bit ^ of_book : bit;
    const Turn first = {(uint8_t)state_before(s, s->forward), 1, (uint8_t)bits_before(s, late_after)};
    Turn turn = first;
    l->n_turns = 0;
    do {
        l->turns[l->n_turns++] = turn;
        turn = (Turn){(uint8_t)state_before(s, turn.partner), (uint8_t)bits_before(s, turn.book),
                      (uint8_t)bits_before(s, turn.late)};
    } while (memcmp(&turn, &first, sizeof turn));
}

static void find_labels(Labels *l, const Search *s, int64_t n_steps)
{
    l->labels[0] = 0;
    for (unsigned bit = 1; bit < (unsigned)s->n_states; bit *= 2) {
        unsigned label = bit;
        for (int64_t k = n_steps % l->n_turns; k > 0; k--)
            label = state_before(s, label);
        for (unsigned k = 0; k < bit; k++)
            l->labels[bit + k] = (uint8_t)(l->labels[k] ^ label);
    }
}

/* Rearrange the metrics of a chunk, so that those of a step are side by side. */
TARGET_AVX2 static ALWAYS_INLINE void turn_steps(const int16_t (*from)[CHUNK], int16_t (*to)[2 * N_SUBSETS])
{
    for (int c = 0; c < CHUNK; c += 8)
        for (int part = 0; part < 4; part++) {
            __m128i pairs[2];
            for (int parity = 0; parity < 2; parity++) {
                const __m128i a = _mm_load_si128((const __m128i *)(from[2 * parity] + c));
                const __m128i b = _mm_load_si128((const __m128i *)(from[2 * parity + 1] + c));
                const __m128i ab = part < 2 ? _mm_unpacklo_epi16(a, b) : _mm_unpackhi_epi16(a, b);
                const __m128i ba = part < 2 ? _mm_unpacklo_epi16(b, a) : _mm_unpackhi_epi16(b, a);
                pairs[parity] = part % 2 ? _mm_unpackhi_epi32(ab, ba) : _mm_unpacklo_epi32(ab, ba);
            }
            _mm_store_si128((__m128i *)to[c + 2 * part], _mm_unpacklo_epi64(pairs[0], pairs[1]));
            _mm_store_si128((__m128i *)to[c + 2 * part + 1], _mm_unpackhi_epi64(pairs[0], pairs[1]));
        }
}

/* Vectors of the metrics of a step, less the cost of the first label: those of two subsets, by turns. */
#define TWO_METRICS(bits, i) _mm##bits##_sub_epi16(_mm##bits##_set1_epi32(two_metrics(metric + 2 * (i))), before)
static ALWAYS_INLINE int32_t two_metrics(const int16_t *metric)
{
    int32_t both;
    memcpy(&both, metric, sizeof both);
    return both;
}

TARGET_AVX2 static ALWAYS_INLINE void advance_labels_avx2(const Labels *l, Turn turn, const int16_t *metric,
                                                          const int16_t *from, int16_t *to, uint32_t *takes_partner)
{
    const __m256i before = _mm256_set1_epi16(from[0]), bytes = _mm256_set1_epi8((char)(2 * (turn.partner & 7)));
    /* Books alternate from lane to lane in the vectors of metrics; so lowest bits are turned */
    const __m256i turned = _mm256_load_si256((const __m256i *)l->masks[turn.book % PLACES ^ 1]);
    const __m256i late = _mm256_load_si256((const __m256i *)l->masks[turn.late % PLACES]);
    const __m128i numbers = _mm_set_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i of_partner = _mm256_xor_si256(_mm256_broadcastsi128_si256(numbers), bytes);
    __m256i even[2], odd[2], earlier[2][2];
    for (int q = 0; q < 2; q++) {
        even[q] = _mm256_blendv_epi8(TWO_METRICS(256, q), TWO_METRICS(256, 1 - q), turned);
        odd[q] = _mm256_blendv_epi8(TWO_METRICS(256, 2 + q), TWO_METRICS(256, 3 - q), turned);
        earlier[0][q] = _mm256_add_epi16(odd[q], late);
        earlier[1][q] = _mm256_sub_epi16(_mm256_add_epi16(odd[q], _mm256_set1_epi16(-1)), late);
    }
    const uint8_t *books = l->parities[turn.book / PLACES], *ties = l->parities[turn.late / PLACES];
#pragma GCC unroll 8
    for (int word = 0; word < WORDS; word++) {
        __m256i is_partner[2];
        for (int half = 0; half < 2; half++) {
            const int at = word * WORD + half * PLACES, q = books[2 * word + half], tie = ties[2 * word + half];
            const int of_low = at ^ (turn.partner & -8), of_high = of_low ^ 8;
            const __m256i low = _mm256_castsi128_si256(_mm_load_si128((const __m128i *)(from + of_low)));
            const __m128i high = _mm_load_si128((const __m128i *)(from + of_high));
            const __m256i other = _mm256_shuffle_epi8(_mm256_inserti128_si256(low, high, 1), of_partner);
            const __m256i own = _mm256_load_si256((const __m256i *)(from + at));
            const __m256i first = _mm256_add_epi16(own, even[q]), second = _mm256_add_epi16(other, odd[q]);
            is_partner[half] = _mm256_cmpgt_epi16(first, _mm256_add_epi16(other, earlier[tie][q]));
            _mm256_store_si256((__m256i *)(to + at), _mm256_min_epi16(first, second));
        }
        const __m256i packed = _mm256_packs_epi16(is_partner[0], is_partner[1]);
        const __m256i in_order = _mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0));
        takes_partner[word] = (uint32_t)_mm256_movemask_epi8(in_order);
    }
}

TARGET_AVX512 static ALWAYS_INLINE void advance_labels_avx512(const Labels *l, Turn turn, const int16_t *metric,
                                                              const int16_t *from, int16_t *to, uint32_t *takes_partner)
{
    const __m512i before = _mm512_set1_epi16(from[0]), one = _mm512_set1_epi16(1);
    const __mmask32 turned = l->words[turn.book % WORD ^ 1], late = l->words[turn.late % WORD];
    const __m512i numbers = _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13,
                                             12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i of_partner = _mm512_xor_si512(numbers, _mm512_set1_epi16(turn.partner % WORD));
    __m512i even[2], odd[2], earlier[2][2];
    for (int q = 0; q < 2; q++) {
        even[q] = _mm512_mask_blend_epi16(turned, TWO_METRICS(512, q), TWO_METRICS(512, 1 - q));
        odd[q] = _mm512_mask_blend_epi16(turned, TWO_METRICS(512, 2 + q), TWO_METRICS(512, 3 - q));
        earlier[0][q] = _mm512_mask_sub_epi16(odd[q], late, odd[q], one);
        earlier[1][q] = _mm512_mask_sub_epi16(odd[q], ~late, odd[q], one);
    }
    const uint8_t *books = l->parities[turn.book / WORD], *ties = l->parities[turn.late / WORD];
#pragma GCC unroll 8
    for (int word = 0; word < WORDS; word++) {
        const int q = books[word];
        const __m512i own = _mm512_load_si512(from + word * WORD);
        const __m512i partner = _mm512_load_si512(from + (word ^ turn.partner / WORD) * WORD);
        const __m512i other = _mm512_permutexvar_epi16(of_partner, partner), first = _mm512_add_epi16(own, even[q]);
        const __m512i second = _mm512_add_epi16(other, earlier[ties[word]][q]);
        const __mmask32 is_partner = _mm512_cmplt_epi16_mask(second, first);
        _store_mask32((__mmask32 *)(takes_partner + word), is_partner);
        _mm512_store_si512(to + word * WORD, _mm512_mask_add_epi16(first, is_partner, other, odd[q]));
    }
}

/* Follow the best path of a sequence back from its end. */
static ALWAYS_INLINE void trace_labels(Lanes *lanes, const Labels *l, int lane, unsigned label)
{
    const Search *s = lanes->search;
    int turn = (int)(lanes->n_steps % l->n_turns);
    for (int64_t end = lanes->n_steps, first; end > 0; end = first) {
        first = (end - 1) / CHUNK * CHUNK;
        const int n = (int)(end - first);
        const int16_t(*const chosen)[CHUNK] = (const int16_t(*)[CHUNK])l->chosen[first / CHUNK];
        const uint32_t *takes_partner = l->takes_partner + first * WORDS;
        int16_t indices[CHUNK];
        uint8_t books[CHUNK];
        for (int c = n - 1; c >= 0; c--) {
            turn = (turn ? turn : l->n_turns) - 1;
            const unsigned q = parity(label & l->turns[turn].book);
            const unsigned is_partner = takes_partner[c * WORDS + label / WORD] >> label % WORD & 1;
            indices[c] = chosen[2 * is_partner + q][c], books[c] = (uint8_t)q;
            label ^= l->turns[turn].partner & (0 - is_partner);
        }
        find_places(lanes, first, n);
        COPY(n, lanes->at, s->indices[lanes->place[lane] + place], indices[c]);
        COPY(n, lanes->at, s->books[lanes->place[lane] + place], books[c]);
    }
}

/* Search the sequences of all lanes, one after another. */
#define SEARCH_LABELS(set, target)                                                                                    \
    target static void search_labels_##set(Lanes *lanes)                                                              \
    {                                                                                                                 \
        const Search *s = lanes->search;                                                                              \
        Labels labels = {.takes_partner = (uint32_t *)lanes->takes_second, .chosen = lanes->chosen}, *l = &labels;    \
        find_turns(l, s);                                                                                             \
        find_labels(l, s, lanes->n_steps);                                                                            \
        for (int lane = 0; lane < lanes->n; lane++) {                                                                 \
            int turn = 0, state = 0;                                                                                  \
            for (int t = 0; t < MAX_STATES; t++)                                                                      \
                l->cost[0][t] = lanes->cost[0][t][lane];                                                              \
            for (int64_t first = 0; first < lanes->n_steps; first += CHUNK) {                                         \
                const int n = (int)(lanes->n_steps - first < CHUNK ? lanes->n_steps - first : CHUNK);                 \
                load_chunk(lanes, first, n, lane, lane + 1);                                                          \
                const Chunk chunk = chunk_of(lanes, lane, n);                                                         \
                find_metrics_##set(s, &chunk, lanes->by_lane[0], l->chosen[first / CHUNK]);                           \
                turn_steps((const int16_t(*)[CHUNK])lanes->by_lane[0], l->metric);                                    \
                for (int c = 0; c < n; c++) {                                                                         \
                    advance_labels_##set(l, l->turns[turn], l->metric[c], l->cost[c & 1], l->cost[~c & 1],            \
                                         l->takes_partner + (first + c) * WORDS);                                     \
                    turn = turn + 1 < l->n_turns ? turn + 1 : 0;                                                      \
                }                                                                                                     \
            }                                                                                                         \
            const int16_t *cost = l->cost[lanes->n_steps & 1];                                                        \
            for (int t = 1; t < MAX_STATES; t++)                                                                      \
                state = cost[l->labels[t]] < cost[l->labels[state]] ? t : state;                                      \
            s->end[lanes->number[lane]] = (uint8_t)state;                                                             \
            trace_labels(lanes, l, lane, l->labels[state]);                                                           \
        }                                                                                                             \
    }

SEARCH_LABELS(avx2, TARGET_AVX2)
SEARCH_LABELS(avx512, TARGET_AVX512)
#endif

#endif
