/* Decoding the codes of a trellis stage (SPEC 12.1 to 12.4).

   The tiles of a block are lanes. A step decodes one code of each lane, and the lanes take words from one stream, in
   their order (Giesen 2014, "Interleaved entropy coders"; how a vector takes words: Bonfield, htscodecs, rANS 32x16). */

#include "trellis.h"

#include <stdlib.h>
#include <string.h>

#include "instruction_sets.h"

#define WIDTH 16 /* values of a lane that are gathered before they are written: a cache line */
#define LOWEST 65536u /* the least value of x, and its last one */

/* The lanes of a block, while it is decoded. */
typedef struct {
    const TrellisBlock *block;
    const uint8_t *next, *end; /* words */
    int is_short;              /* words were missing */
    int64_t n, n_across;       /* lanes, and those beside each other */
    uint32_t *x, *state;       /* SPEC 12.3, 12.2 */
    uint32_t *row_slot;        /* first slot of the row class of each lane's row */
    uint32_t *first_slot;      /* first slot of each lane's context */
    float *values;             /* the last values of each lane: WIDTH of them, or as many as a tile has columns */
    int32_t *place;            /* where those of each lane begin */
} Lanes;

/* One step of the lanes first to last - 1. ``offset`` is added to their places. */
typedef void Step(Lanes *lanes, int64_t first, int64_t last, const uint32_t *first_slot, int32_t offset);

static uint32_t read_u32(const uint8_t *p) { return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24; }

/* In the kernels, these three say which parts are needed. They are constants where a kernel is called, so that the
   compiler leaves out the others. */
#define PARTS int is_wide, int has_book, int has_trellis

static ALWAYS_INLINE void step_scalar(Lanes *l, int64_t first, int64_t last, const uint32_t *first_slot,
                                      int32_t offset, PARTS)
{
    const TrellisBlock *b = l->block;
    const int precision = b->precision, parity = b->n_books - 1; /* the bit of a symbol that is the lowest of its code */
    const uint32_t mask = (1u << precision) - 1, feedback = b->feedback, forward = b->forward;
    const int32_t zero = b->zero;
    const float size = b->step, *book = b->book;
    const uint8_t *next = l->next, *const end = l->end;
    uint32_t *const xs = l->x, *const states = l->state;
    const int32_t *const place = l->place;
    float *const out = l->values + offset;
    for (int64_t t = first; t < last; t++) {
        uint32_t x = xs[t], s = 0, q = 0, slot = x & mask, step, symbol;
        if (has_trellis)
            s = states[t], q = s & 1, slot += q << precision;
        if (first_slot)
            slot += first_slot[t];
        if (is_wide) {
            uint64_t found = ((const uint64_t *)b->slots)[slot];
            step = (uint32_t)found, symbol = (uint32_t)(found >> 32);
        } else {
            step = ((const uint32_t *)b->slots)[slot], symbol = step >> 24;
        }
        /* f (x >> P) + slot - start, where slot is x mod 2^P */
        x -= (x >> precision) * (step & mask) + (step >> precision & mask);
        if (x < LOWEST) {
            uint32_t word = 0;
            if (next < end)
                word = next[0] | (uint32_t)next[1] << 8, next += 2;
            else
                l->is_short = 1;
            x = x << 16 | word;
        }
        xs[t] = x;
        if (has_trellis)
            states[t] = s >> 1 ^ ((0u - q) & feedback) ^ ((0u - (symbol >> parity & 1)) & forward);
        out[place[t]] = has_book ? book[symbol] : (float)((int32_t)symbol - zero) * size;
    }
    l->next = next;
}

#ifdef HAS_X86
/* For each set of lanes that take a word: the number of the word that each of the eight takes. */
static uint32_t word_of_lane[256][8];

TARGET_AVX2
static ALWAYS_INLINE void step_avx2(Lanes *l, int64_t first, int64_t last, const uint32_t *first_slot, int32_t offset,
                                    PARTS)
{
    const TrellisBlock *b = l->block;
    const __m128i precision = _mm_cvtsi32_si128(b->precision), parity = _mm_cvtsi32_si128(b->n_books - 1);
    const __m256i mask = _mm256_set1_epi32((1 << b->precision) - 1), one = _mm256_set1_epi32(1);
    const __m256i feedback = _mm256_set1_epi32((int)b->feedback), forward = _mm256_set1_epi32((int)b->forward);
    const __m256i zero = _mm256_set1_epi32(b->zero), none = _mm256_setzero_si256();
    const __m256 size = _mm256_set1_ps(b->step);
    const int *const slots = b->slots;
    const float *const book = b->book;
    const uint8_t *next = l->next, *const end = l->end;
    uint32_t *const xs = l->x, *const states = l->state;
    const int32_t *const place = l->place;
    float *const out = l->values + offset;
    int64_t t = first;
    for (; t + 8 <= last && end - next >= 16; t += 8) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(xs + t)), s = none, q = none, step, symbol;
        __m256i slot = _mm256_and_si256(x, mask);
        if (has_trellis) {
            s = _mm256_loadu_si256((const __m256i *)(states + t));
            q = _mm256_and_si256(s, one);
            slot = _mm256_add_epi32(slot, _mm256_sll_epi32(q, precision));
        }
        if (first_slot)
            slot = _mm256_add_epi32(slot, _mm256_loadu_si256((const __m256i *)(first_slot + t)));
        if (is_wide) {
            step = _mm256_i32gather_epi32(slots, slot, 8);
            symbol = _mm256_i32gather_epi32(slots + 1, slot, 8);
        } else {
            step = _mm256_i32gather_epi32(slots, slot, 4);
            symbol = _mm256_srli_epi32(step, 24);
        }
        __m256i less = _mm256_mullo_epi32(_mm256_srl_epi32(x, precision), _mm256_and_si256(step, mask));
        less = _mm256_add_epi32(less, _mm256_and_si256(_mm256_srl_epi32(step, precision), mask));
        x = _mm256_sub_epi32(x, less);
        __m256i is_low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), none);
        unsigned set = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(is_low));
        __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)next));
        words = _mm256_permutevar8x32_epi32(words, _mm256_loadu_si256((const __m256i *)word_of_lane[set]));
        x = _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), words), is_low);
        next += 2 * _mm_popcnt_u32(set);
        _mm256_storeu_si256((__m256i *)(xs + t), x);
        if (has_trellis) {
            __m256i p = _mm256_and_si256(_mm256_srl_epi32(symbol, parity), one);
            s = _mm256_xor_si256(_mm256_srli_epi32(s, 1), _mm256_and_si256(_mm256_sub_epi32(none, q), feedback));
            s = _mm256_xor_si256(s, _mm256_and_si256(_mm256_sub_epi32(none, p), forward));
            _mm256_storeu_si256((__m256i *)(states + t), s);
        }
        float values[8];
        _mm256_storeu_ps(values, has_book ? _mm256_i32gather_ps(book, symbol, 4)
                                          : _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(symbol, zero)), size));
        for (int k = 0; k < 8; k++)
            out[place[t + k]] = values[k];
    }
    l->next = next;
    step_scalar(l, t, last, first_slot, offset, is_wide, has_book, has_trellis);
}

TARGET_AVX512
static ALWAYS_INLINE void step_avx512(Lanes *l, int64_t first, int64_t last, const uint32_t *first_slot,
                                      int32_t offset, PARTS)
{
    const TrellisBlock *b = l->block;
    const __m128i precision = _mm_cvtsi32_si128(b->precision), parity = _mm_cvtsi32_si128(b->n_books - 1);
    const __m512i mask = _mm512_set1_epi32((1 << b->precision) - 1), one = _mm512_set1_epi32(1);
    const __m512i feedback = _mm512_set1_epi32((int)b->feedback), forward = _mm512_set1_epi32((int)b->forward);
    const __m512i zero = _mm512_set1_epi32(b->zero), none = _mm512_setzero_si512();
    const __m512i lowest = _mm512_set1_epi32(LOWEST);
    const __m512 size = _mm512_set1_ps(b->step);
    const int *const slots = b->slots;
    const float *const book = b->book;
    const uint8_t *next = l->next, *const end = l->end;
    uint32_t *const xs = l->x, *const states = l->state;
    const int32_t *const place = l->place;
    float *const out = l->values + offset;
    int64_t t = first;
    for (; t < last && end - next >= 32; t += 16) {
        const __mmask16 is_there = last - t >= 16 ? 0xFFFF : (__mmask16)((1u << (last - t)) - 1);
        __m512i x = _mm512_maskz_loadu_epi32(is_there, xs + t), s = none, q = none, step, symbol;
        __m512i slot = _mm512_and_si512(x, mask);
        if (has_trellis) {
            s = _mm512_maskz_loadu_epi32(is_there, states + t);
            q = _mm512_and_si512(s, one);
            slot = _mm512_add_epi32(slot, _mm512_sll_epi32(q, precision));
        }
        if (first_slot)
            slot = _mm512_add_epi32(slot, _mm512_maskz_loadu_epi32(is_there, first_slot + t));
        if (is_wide) {
            step = _mm512_i32gather_epi32(slot, slots, 8);
            symbol = _mm512_i32gather_epi32(slot, slots + 1, 8);
        } else {
            step = _mm512_i32gather_epi32(slot, slots, 4);
            symbol = _mm512_srli_epi32(step, 24);
        }
        __m512i less = _mm512_mullo_epi32(_mm512_srl_epi32(x, precision), _mm512_and_si512(step, mask));
        less = _mm512_add_epi32(less, _mm512_and_si512(_mm512_srl_epi32(step, precision), mask));
        x = _mm512_sub_epi32(x, less);
        const __mmask16 is_low = _mm512_mask_cmplt_epu32_mask(is_there, x, lowest);
        __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)next));
        words = _mm512_maskz_expand_epi32(is_low, words);
        x = _mm512_mask_or_epi32(x, is_low, _mm512_slli_epi32(x, 16), words);
        next += 2 * _mm_popcnt_u32(is_low);
        _mm512_mask_storeu_epi32(xs + t, is_there, x);
        if (has_trellis) {
            __m512i p = _mm512_and_si512(_mm512_srl_epi32(symbol, parity), one);
            s = _mm512_xor_si512(_mm512_srli_epi32(s, 1), _mm512_and_si512(_mm512_sub_epi32(none, q), feedback));
            s = _mm512_xor_si512(s, _mm512_and_si512(_mm512_sub_epi32(none, p), forward));
            _mm512_mask_storeu_epi32(states + t, is_there, s);
        }
        __m512 value = has_book ? _mm512_i32gather_ps(symbol, book, 4)
                                : _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(symbol, zero)), size);
        _mm512_mask_i32scatter_ps(out, is_there, _mm512_maskz_loadu_epi32(is_there, place + t), value, 4);
    }
    l->next = next;
    step_scalar(l, t < last ? t : last, last, first_slot, offset, is_wide, has_book, has_trellis);
}
#endif

/* The eight kernels of an instruction set: by whether slots are wide, there is a book, there is a trellis. */
#define KERNEL(set, attributes, w, k, s)                                                                              \
    attributes static void set##_##w##k##s(Lanes *l, int64_t first, int64_t last, const uint32_t *slot, int32_t at)   \
    {                                                                                                                 \
        step_##set(l, first, last, slot, at, w, k, s);                                                                \
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

void trellis_start(void)
{
#ifdef HAS_X86
    for (int set = 0; set < 256; set++)
        for (int lane = 0, n = 0; lane < 8; lane++) {
            word_of_lane[set][lane] = (uint32_t)n;
            n += set >> lane & 1;
        }
#endif
}

void trellis_slots(const uint32_t *frequencies, int64_t n_tables, int64_t entries, int precision, int n_books,
                   int is_wide, void *slots)
{
    const uint32_t n_slots = 1u << precision;
    for (int64_t i = 0, at = 0; i < n_tables; i++)
        for (int64_t code = 0, start = 0; code < entries; code++) {
            const uint32_t frequency = *frequencies++, step = (n_slots - frequency) | (uint32_t)start << precision;
            const uint32_t symbol = (uint32_t)(n_books * code + i % n_books);
            for (uint32_t k = 0; k < frequency; k++, at++)
                if (is_wide)
                    ((uint64_t *)slots)[at] = step | (uint64_t)symbol << 32;
                else
                    ((uint32_t *)slots)[at] = step | symbol << 24;
            start += frequency;
        }
}

/* Whether the classes lead to slots that are there. */
static int are_slots_there(const TrellisBlock *b)
{
    int64_t row = 0, column = 0;
    for (int64_t r = 0; b->row_classes && r < b->n_rows; r++)
        row = b->row_classes[r] > row ? b->row_classes[r] : row;
    for (int64_t c = 0; b->column_classes && c < b->n_columns; c++)
        column = b->column_classes[c] > column ? b->column_classes[c] : column;
    return ((row + column + 1) * b->n_books) << b->precision <= b->n_slots;
}

/* The first slot of the context of each lane at column ``j`` of its tile. */
static void find_slots(Lanes *l, int64_t down, int64_t across, int64_t j, int shift)
{
    const TrellisBlock *b = l->block;
    for (int64_t d = 0; d < down; d++) {
        const uint32_t of_row = b->row_classes ? l->row_slot[d] : 0;
        uint32_t *first_slot = l->first_slot + d * l->n_across;
        for (int64_t a = 0; a < across; a++)
            first_slot[a] = of_row + (b->column_classes ? (uint32_t)(b->column_classes[a * b->tile_columns + j] *
                                                                     b->n_books) << shift : 0);
    }
}

static int decode_lanes(Lanes *l, int64_t n_down, Step *step)
{
    const TrellisBlock *b = l->block;
    const int64_t height = b->tile_rows, width = b->tile_columns, n_across = l->n_across;
    const int64_t last_height = b->n_rows - (n_down - 1) * height, last_width = b->n_columns - (n_across - 1) * width;
    const int64_t gathered = width < WIDTH ? width : WIDTH;
    const int shift = b->precision, has_classes = b->row_classes || b->column_classes;
    for (int64_t t = 0; t < l->n; t++) {
        l->x[t] = read_u32(b->payload + 4 * t);
        if (l->x[t] < LOWEST)
            return STATE_TOO_LOW;
        l->state[t] = 0;
        l->place[t] = (int32_t)(t * gathered);
    }
    for (int64_t i = 0; i < height; i++) {
        const int64_t down = i < last_height ? n_down : n_down - 1;
        for (int64_t d = 0; b->row_classes && d < down; d++)
            l->row_slot[d] = (uint32_t)(b->row_classes[d * height + i] * b->n_books) << shift;
        for (int64_t from = 0; from < width; from += gathered) {
            const int64_t to = from + gathered < width ? from + gathered : width;
            for (int64_t j = from; j < to; j++) {
                const int64_t across = j < last_width ? n_across : n_across - 1;
                if (has_classes)
                    find_slots(l, down, across, j, shift);
                const uint32_t *first_slot = has_classes ? l->first_slot : NULL;
                if (across == n_across)
                    step(l, 0, down * n_across, first_slot, (int32_t)(j - from));
                else
                    for (int64_t d = 0; d < down; d++)
                        step(l, d * n_across, d * n_across + across, first_slot, (int32_t)(j - from));
            }
            for (int64_t d = 0; d < down; d++)
                for (int64_t a = 0; a < n_across; a++) {
                    const int64_t end = a == n_across - 1 && to > last_width ? last_width : to;
                    if (end > from)
                        memcpy(b->out + (d * height + i) * b->n_columns + a * width + from,
                               l->values + (d * n_across + a) * gathered, (size_t)(end - from) * sizeof(float));
                }
        }
        if (l->is_short)
            return WORDS_END;
    }
    if (l->next < l->end)
        return WORDS_LEFT;
    for (int64_t t = 0; t < l->n; t++)
        if (l->x[t] != LOWEST)
            return STATE_AT_END;
    return OK;
}

int trellis_decode(const TrellisBlock *b, int instruction_set)
{
    const int64_t n_down = (b->n_rows + b->tile_rows - 1) / b->tile_rows;
    const int64_t n_across = (b->n_columns + b->tile_columns - 1) / b->tile_columns;
    const int64_t n = n_down * n_across;
    if (!are_slots_there(b))
        return SLOTS_MISSING;
    const int64_t gathered = b->tile_columns < WIDTH ? b->tile_columns : WIDTH;
    uint32_t *memory = malloc((size_t)(4 * n + n_down) * sizeof *memory);
    float *values = malloc((size_t)(gathered * n) * sizeof *values);
    if (!memory || !values) {
        free(memory), free(values);
        return NO_MEMORY;
    }
    Lanes lanes = {.block = b, .next = b->payload + 4 * n, .end = b->payload + b->payload_nbytes, .n = n,
                   .n_across = n_across, .x = memory, .state = memory + n, .first_slot = memory + 2 * n,
                   .place = (int32_t *)(memory + 3 * n), .row_slot = memory + 4 * n,
                   .values = values};
    const int kernel = (b->is_wide ? 4 : 0) + (b->book ? 2 : 0) + (b->n_books == 2);
    int found = decode_lanes(&lanes, n_down, STEPS[instruction_set][kernel]);
    free(memory), free(values);
    return found;
}
