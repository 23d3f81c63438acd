/* Entropy coding of the codes of a trellis stage (the twins: vqformat/decode/rans.py, encode; and
   vqformat/encode/small, coded_tensor.py and entropy_coding.py).

   The tiles of a block are lanes. Codes are encoded from the last step to the first, and from the last lane to the
   first, so words are written from the end of the payload on (Giesen 2014, "Interleaved entropy coders"). */

#include "entropy.h"

#include <stdlib.h>
#include <string.h>

#include "instruction_sets.h"

enum { CHUNK = 128, WIDTH = 16 }; /* steps that are looked up together; lanes of a vector */
enum { FEWEST = 4 };              /* fewest lanes for AVX2, see step_avx2 */
enum { AHEAD = 4, LINE = 64 };    /* lanes whose codes are asked for before they are used; bytes of a cache line */
static const uint32_t START = 1u << 16;

typedef struct {
    const Codes *codes;
    int64_t n, n_padded;    /* lanes; the same as a multiple of WIDTH */
    uint32_t *x;            /* (n_padded,): the states */
    uint32_t *chunk;        /* (CHUNK, n_padded): frequency and start of each code; 0 where a lane has none */
    int precision;
    uint8_t *next;          /* where the word after the next one was written */
    uint8_t orders[256][8]; /* for AVX2, see find_orders */
} Lanes;

/* The first symbol of the class of a row. */
static int64_t first_symbol(const Codes *c, int64_t row)
{
    return (c->row_classes ? c->row_classes[row] : 0) * c->n_books * c->entries + c->zero;
}

int count_codes(const Codes *c, int64_t *counts)
{
    const int64_t of_class = c->n_books * c->entries;
    for (int64_t row = 0; row < c->n_rows; row++) {
        const int64_t first = first_symbol(c, row);
        const int16_t *indices = c->indices + row * c->stride;
        const uint8_t *books = c->books + row * c->stride;
        for (int64_t column = 0; column < c->n_columns; column++) {
            int64_t symbol = first + books[column] * c->entries + indices[column];
            if (c->column_classes)
                symbol += c->column_classes[column] * of_class;
            if ((uint64_t)symbol >= (uint64_t)c->n_symbols)
                return 1;
            counts[symbol]++;
        }
    }
    return 0;
}

/* Look up n codes that are side by side. Those beyond ``n_there`` are not there. ``out`` is a column of the chunk.
   Returns whether a symbol is too large. */
static ALWAYS_INLINE int look_up(const Codes *c, int64_t row, int64_t column, int n, int64_t n_there,
                                 const uint32_t *table, uint32_t *out, int64_t n_padded, int has_classes)
{
    const int n_read = n_there < n ? (int)n_there : n;
    const int64_t of_class = c->n_books * c->entries, n_symbols = c->n_symbols, entries = c->entries;
    const int64_t at = row * c->stride + column, first = n_read > 0 ? first_symbol(c, row) : 0;
    int is_outside = 0;
    for (int k = 0; k < n_read; k++) {
        int64_t symbol = first + c->books[at + k] * entries + c->indices[at + k];
        if (has_classes)
            symbol += c->column_classes[column + k] * of_class;
        const int is_inside = (uint64_t)symbol < (uint64_t)n_symbols;
        is_outside |= !is_inside;
        out[k * n_padded] = table[is_inside ? symbol : 0];
    }
    for (int k = n_read > 0 ? n_read : 0; k < n; k++)
        out[k * n_padded] = 0;
    return is_outside;
}

/* Ask for n codes of a later lane: too many lanes for the processor to foresee. */
static void prefetch(const Codes *c, int64_t row, int64_t column, int n)
{
    if (row >= c->n_rows)
        return;
    const int64_t at = row * c->stride + column;
    for (int k = 0; k < n; k += LINE / (int)sizeof *c->indices)
        PREFETCH_TO_READ(c->indices + at + k);
    for (int k = 0; k < n; k += LINE)
        PREFETCH_TO_READ(c->books + at + k);
}

/* Look up the codes of a chunk of steps, from number ``first`` of a tile of ``width`` columns on. */
static int load_chunk(const Lanes *l, int64_t first, int n, int64_t height, int64_t width, const uint32_t *table)
{
    const Codes *c = l->codes;
    const int64_t n_across = (c->n_columns + width - 1) / width;
    int is_outside = 0;
    for (int64_t lane = 0; lane < l->n; lane++) {
        const int64_t row = lane / n_across * height, column = lane % n_across * width;
        int64_t i = first / width, j = first % width;
        prefetch(c, (lane + AHEAD) / n_across * height + i, (lane + AHEAD) % n_across * width + j, n);
        for (int k = 0; k < n;) {
            const int n_here = width - j < n - k ? (int)(width - j) : n - k;
            const int64_t n_there = row + i < c->n_rows ? c->n_columns - column - j : 0;
            uint32_t *out = l->chunk + k * l->n_padded + lane;
            is_outside |= c->column_classes
                              ? look_up(c, row + i, column + j, n_here, n_there, table, out, l->n_padded, 1)
                              : look_up(c, row + i, column + j, n_here, n_there, table, out, l->n_padded, 0);
            k += n_here, i++, j = 0;
        }
    }
    return is_outside ? -1 : 0;
}

static void step_scalar(Lanes *l, const uint32_t *found)
{
    const int precision = l->precision;
    for (int64_t lane = l->n - 1; lane >= 0; lane--) {
        const uint32_t frequency = found[lane] & 0xFFFF, start = found[lane] >> 16;
        uint32_t x = l->x[lane];
        if (!frequency)
            continue;
        const int is_large = x >> (32 - precision) >= frequency;
        l->next[-2] = (uint8_t)x, l->next[-1] = (uint8_t)(x >> 8);
        l->next -= 2 * is_large;
        x = is_large ? x >> 16 : x;
        l->x[lane] = (x / frequency << precision) + x % frequency + start;
    }
}

#ifdef HAS_X86
/* The integer part of x / divisor, for four integers below 2^32 and divisors below 2^15: float64 is exact enough. */
TARGET_AVX2 static ALWAYS_INLINE __m128i quotients_avx2(__m128i x, __m128i divisor)
{
    const __m128i half = _mm_set1_epi32(INT32_MIN); /* there are conversions of signed integers only */
    const __m256d value = _mm256_add_pd(_mm256_cvtepi32_pd(_mm_xor_si128(x, half)), _mm256_set1_pd(2147483648.0));
    return _mm256_cvttpd_epi32(_mm256_div_pd(value, _mm256_cvtepi32_pd(divisor)));
}

/* At number i the lanes whose bits of i are set, at the end, in ascending order. */
static void find_orders(uint8_t orders[256][8])
{
    for (int i = 0; i < 256; i++) {
        int at = 8;
        for (int lane = 7; lane >= 0; lane--)
            if (i >> lane & 1)
                orders[i][--at] = (uint8_t)lane;
        while (at > 0)
            orders[i][--at] = 0;
    }
}

/* 8 lanes write 16 bytes, of which the last ones are words. There is room for the others: the states of at least
   FEWEST lanes, which come before all words, are written later. */
TARGET_AVX2 static void step_avx2(Lanes *l, const uint32_t *found)
{
    const __m128i precision = _mm_cvtsi32_si128(l->precision), rest = _mm_cvtsi32_si128(32 - l->precision);
    const __m256i low = _mm256_set1_epi32(0xFFFF), zero = _mm256_setzero_si256(), one = _mm256_set1_epi32(1);
    for (int64_t lane = l->n_padded - 8; lane >= 0; lane -= 8) {
        const __m256i of_code = _mm256_loadu_si256((const __m256i *)(found + lane));
        const __m256i frequency = _mm256_and_si256(of_code, low), start = _mm256_srli_epi32(of_code, 16);
        const __m256i is_coded = _mm256_cmpgt_epi32(frequency, zero);
        const __m256i before = _mm256_loadu_si256((const __m256i *)(l->x + lane));
        const __m256i is_small = _mm256_cmpgt_epi32(frequency, _mm256_srl_epi32(before, rest));
        const __m256i is_large = _mm256_andnot_si256(is_small, is_coded);
        const int bits = _mm256_movemask_ps(_mm256_castsi256_ps(is_large));
        const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)l->orders[bits]));
        const __m256i words = _mm256_and_si256(_mm256_permutevar8x32_epi32(before, order), low);
        const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128((__m128i *)(l->next - sizeof packed), packed);
        l->next -= 2 * _mm_popcnt_u32((unsigned)bits);
        const __m256i x = _mm256_blendv_epi8(before, _mm256_srli_epi32(before, 16), is_large);
        const __m256i divisor = _mm256_max_epi32(frequency, one);
        const __m128i left = quotients_avx2(_mm256_castsi256_si128(x), _mm256_castsi256_si128(divisor));
        const __m128i right = quotients_avx2(_mm256_extracti128_si256(x, 1), _mm256_extracti128_si256(divisor, 1));
        const __m256i quotient = _mm256_inserti128_si256(_mm256_castsi128_si256(left), right, 1);
        const __m256i remainder = _mm256_sub_epi32(x, _mm256_mullo_epi32(quotient, frequency));
        const __m256i of_remainder = _mm256_add_epi32(remainder, start);
        const __m256i after = _mm256_add_epi32(_mm256_sll_epi32(quotient, precision), of_remainder);
        _mm256_storeu_si256((__m256i *)(l->x + lane), _mm256_blendv_epi8(before, after, is_coded));
    }
}

TARGET_AVX512 static void step_avx512(Lanes *l, const uint32_t *found)
{
    const __m128i precision = _mm_cvtsi32_si128(l->precision), rest = _mm_cvtsi32_si128(32 - l->precision);
    const __m512i low = _mm512_set1_epi32(0xFFFF), one = _mm512_set1_epi32(1);
    for (int64_t lane = l->n_padded - WIDTH; lane >= 0; lane -= WIDTH) {
        const __m512i of_code = _mm512_loadu_si512(found + lane);
        const __m512i frequency = _mm512_and_si512(of_code, low), start = _mm512_srli_epi32(of_code, 16);
        const __mmask16 is_coded = _mm512_test_epi32_mask(frequency, frequency);
        __m512i x = _mm512_loadu_si512(l->x + lane);
        const __mmask16 is_large = _mm512_mask_cmpge_epu32_mask(is_coded, _mm512_srl_epi32(x, rest), frequency);
        const int n_words = _mm_popcnt_u32(is_large);
        l->next -= 2 * n_words;
        _mm256_mask_storeu_epi16(l->next, (__mmask16)((1u << n_words) - 1),
                                 _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(is_large, x)));
        x = _mm512_mask_srli_epi32(x, is_large, x, 16);
        /* exact: x is below 2^32, and a frequency below 2^15 */
        const __m512i divisor = _mm512_max_epu32(frequency, one);
        const __m512d left = _mm512_div_pd(_mm512_cvtepu32_pd(_mm512_castsi512_si256(x)),
                                           _mm512_cvtepu32_pd(_mm512_castsi512_si256(divisor)));
        const __m512d right = _mm512_div_pd(_mm512_cvtepu32_pd(_mm512_extracti64x4_epi64(x, 1)),
                                            _mm512_cvtepu32_pd(_mm512_extracti64x4_epi64(divisor, 1)));
        const __m512i quotient = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvttpd_epu32(left)),
                                                    _mm512_cvttpd_epu32(right), 1);
        const __m512i remainder = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, frequency));
        x = _mm512_add_epi32(_mm512_sll_epi32(quotient, precision), _mm512_add_epi32(remainder, start));
        _mm512_mask_storeu_epi32(l->x + lane, is_coded, x);
    }
}
static void (*const STEPS[])(Lanes *, const uint32_t *) = {step_scalar, step_avx2, step_avx512};
#else
static void (*const STEPS[])(Lanes *, const uint32_t *) = {step_scalar, step_scalar, step_scalar};
#endif

int64_t rans_encode(const Codes *c, int64_t tile_rows, int64_t tile_columns, const uint32_t *table, int precision,
                    uint8_t *payload, int instruction_set)
{
    const int64_t n = ((c->n_rows + tile_rows - 1) / tile_rows) * ((c->n_columns + tile_columns - 1) / tile_columns);
    const int64_t n_padded = (n + WIDTH - 1) / WIDTH * WIDTH, n_steps = tile_rows * tile_columns;
    const int64_t chunk = n_steps < CHUNK ? n_steps : CHUNK;
    uint32_t *memory = calloc((size_t)(n_padded * (chunk + 1)) + 1, sizeof *memory);
    if (!memory)
        return -2;
    uint8_t *const end = payload + 4 * n + 2 * c->n_rows * c->n_columns + 2;
    Lanes lanes = {.codes = c, .n = n, .n_padded = n_padded, .x = memory, .chunk = memory + n_padded,
                   .precision = precision, .next = end};
    int64_t found = 0;
    if (instruction_set == AVX2 && n < FEWEST)
        instruction_set = SCALAR;
#ifdef HAS_X86
    if (instruction_set == AVX2)
        find_orders(lanes.orders);
#endif
    for (int64_t lane = 0; lane < n; lane++)
        lanes.x[lane] = START;
    for (int64_t last = n_steps; last > 0 && found == 0;) {
        const int64_t first = (last - 1) / CHUNK * CHUNK;
        found = load_chunk(&lanes, first, (int)(last - first), tile_rows, tile_columns, table);
        for (int64_t step = last - 1; step >= first && found == 0; step--)
            STEPS[instruction_set](&lanes, lanes.chunk + (step - first) * n_padded);
        last = first;
    }
    if (found == 0) {
        for (int64_t lane = 0; lane < n; lane++)
            for (int k = 0; k < 4; k++)
                payload[4 * lane + k] = (uint8_t)(lanes.x[lane] >> 8 * k);
        memmove(payload + 4 * n, lanes.next, (size_t)(end - lanes.next));
        found = 4 * n + (end - lanes.next);
    }
    free(memory);
    return found;
}
