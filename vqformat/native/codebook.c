/* The values of a codebook stage (SPEC 9, 10): a byte at a time where a byte holds whole codes of one codebook of numbers;
   else codes are unpacked a few hundred at a time, and looked up. */

#include "codebook.h"

#include <string.h>

#include "byte_values.h"
#include "instruction_sets.h"

enum { TOGETHER = 512 }; /* codes that are unpacked together */

/* The digits of each byte of a plane; the others are 0. */
typedef uint8_t DigitTable[256][DIGITS];

static void fill_digits(DigitTable table, int base, int per_byte)
{
    memset(table, 0, sizeof(DigitTable));
    for (int byte = 0; byte < 256; byte++)
        for (int k = 0, rest = byte; k < per_byte; k++, rest /= base)
            table[byte][k] = (uint8_t)(rest % base);
}

/* base^n, at most 256 where it is used */
static int power(int base, int64_t n)
{
    int product = 1;
    for (int64_t k = 0; k < n; k++)
        product *= base;
    return product;
}

/* COD-005: no byte holds more than its digits, and the digits after the last code are 0. */
static int is_plane_sound(const CodebookBlock *b, int plane)
{
    const int base = b->base[plane], per_byte = b->per_byte[plane];
    const int64_t n_codes = b->n_rows * b->n_subvectors, n = b->section_nbytes[plane], used = n_codes % per_byte;
    const uint8_t *bytes = b->section[plane];
    const int count = power(base, per_byte);
    return (count == 256 || largest_byte(bytes, n) < count) && (!used || bytes[n - 1] < power(base, used));
}

/* COD-002: the bits after the last code are 0. */
static int is_end_zero(const CodebookBlock *b)
{
    const int64_t used = b->n_rows * b->n_subvectors * b->width % 8;
    return !used || b->section[0][b->section_nbytes[0] - 1] >> used == 0;
}

/* Eight bytes from ``offset`` on; zeros after the last one. */
static ALWAYS_INLINE uint64_t read_u64(const CodebookBlock *b, int64_t offset)
{
    const int64_t left = b->section_nbytes[0] - offset;
    uint8_t bytes[8] = {0};
    if (left >= 8)
        memcpy(bytes, b->section[0] + offset, 8);
    else
        memcpy(bytes, b->section[0] + offset, (size_t)left);
    uint64_t word = 0;
    for (int k = 0; k < 8; k++)
        word |= (uint64_t)bytes[k] << 8 * k;
    return word;
}

/* Unpack the codes ``first`` to ``first + n`` of the block. */
static ALWAYS_INLINE void unpack_dense(const CodebookBlock *b, int64_t first, int64_t n, uint32_t *codes)
{
    const int width = b->width;
    const uint64_t mask = ((uint64_t)1 << width) - 1;
    if (width == 0) {
        memset(codes, 0, (size_t)n * sizeof *codes);
    } else if (width == 8) {
        for (int64_t i = 0; i < n; i++)
            codes[i] = b->section[0][first + i];
    } else if (width == 4 && first % 2 == 0) {
        const uint8_t *bytes = b->section[0] + first / 2;
        for (int64_t i = 0; i < n / 2; i++)
            codes[2 * i] = bytes[i] & 15, codes[2 * i + 1] = bytes[i] >> 4;
        if (n % 2)
            codes[n - 1] = bytes[n / 2] & 15;
    } else {
        const int per_word = 57 / width; /* 64 bits less up to 7 that a byte has before the first code */
        for (int64_t i = 0; i < n; i += per_word) {
            const int64_t bit = (first + i) * width;
            uint64_t word = read_u64(b, bit / 8) >> bit % 8;
            for (int64_t k = i; k < n && k < i + per_word; k++, word >>= width)
                codes[k] = (uint32_t)(word & mask);
        }
    }
}

/* The digits of ``n`` codes from ``first`` on, one in each byte. They are in ``space``, of TOGETHER + 2 DIGITS bytes, unless
   the section has them like that. */
static ALWAYS_INLINE const uint8_t *digits_of(const CodebookBlock *b, int plane, DigitTable table, int64_t first,
                                              int64_t n, uint8_t *space)
{
    const int64_t per_byte = b->per_byte[plane], skipped = first % per_byte;
    const uint8_t *bytes = b->section[plane] + first / per_byte;
    if (per_byte == 1)
        return bytes;
    for (int64_t at = 0; at < skipped + n; at += per_byte)
        memcpy(space + at, table[*bytes++], DIGITS);
    return space + skipped;
}

static ALWAYS_INLINE void unpack_planes(const CodebookBlock *b, DigitTable *tables, int64_t first, int64_t n,
                                        uint32_t *codes)
{
    uint8_t space[TOGETHER + 2 * DIGITS];
    uint32_t weight = 1;
    for (int p = 0; p < b->n_planes; p++) {
        const uint8_t *digits = digits_of(b, p, tables[p], first, n, space);
        for (int64_t i = 0; i < n; i++)
            codes[i] = (p ? codes[i] : 0) + digits[i] * weight;
        weight *= (uint32_t)b->base[p];
    }
}

#ifdef HAS_X86
/* Look up codes of two planes, one digit of a plane in each byte. Returns whether all are below ``entries``. */
TARGET_AVX512 static int look_up_pairs(const float *book, int64_t entries, const uint8_t *low, const uint8_t *high,
                                       int base, int64_t n, float *out)
{
    const __m512i weight = _mm512_set1_epi32(base), last = _mm512_set1_epi32((int)entries - 1);
    __m512i largest = _mm512_setzero_si512();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512i of_low = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(low + i)));
        const __m512i of_high = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(high + i)));
        const __m512i codes = _mm512_add_epi32(of_low, _mm512_mullo_epi32(of_high, weight));
        largest = _mm512_max_epi32(largest, codes);
        _mm512_storeu_ps(out + i, _mm512_i32gather_ps(_mm512_min_epi32(codes, last), book, 4));
    }
    int is_sound = _mm512_reduce_max_epi32(largest) < entries;
    for (; i < n; i++) {
        const int64_t code = low[i] + high[i] * base;
        is_sound &= code < entries;
        out[i] = book[code < entries ? code : 0];
    }
    return is_sound;
}
#endif

/* Look up ``n`` codes of a row from subvector ``first`` on. */
static ALWAYS_INLINE void look_up(const CodebookBlock *b, int64_t row, int64_t first, int64_t n, const uint32_t *codes,
                                  float *out)
{
    const int64_t group = b->row_group ? b->row_group[row] : 0;
    const int64_t dim = b->dim, column = first * dim;
    if (!b->book) { /* |code - zero| is below 2^24 (CBK-005) */
        const int32_t zero = (int32_t)b->zero;
        const float *steps = b->steps + group;
        for (int64_t i = 0; i < n && b->column_group; i++)
            out[i] = (float)((int32_t)codes[i] - zero) * steps[b->column_group[first + i]];
        for (int64_t i = 0; i < n && !b->column_group; i++)
            out[i] = (float)((int32_t)codes[i] - zero) * steps[0];
        return;
    }
    const float *book = b->book + group * b->entries * dim;
    if (dim == 1 && !b->column_group) {
        for (int64_t i = 0; i < n; i++)
            out[i] = book[codes[i]];
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t of_column = b->column_group ? b->column_group[first + i] * b->entries : 0;
        const float *entry = book + (of_column + codes[i]) * dim;
        const int64_t left = b->n_columns - column - i * dim;
        memcpy(out + i * dim, entry, (size_t)(left < dim ? left : dim) * sizeof *out);
    }
}

/* Multiply ``n`` values of a row from ``column`` on by their scales. */
static ALWAYS_INLINE void multiply(const CodebookBlock *b, int64_t row, int64_t column, int64_t n, float *values)
{
    const float *scales = b->scales + b->row_scale[row];
    if (!b->scale_columns) {
        for (int64_t i = 0; i < n; i++)
            values[i] *= scales[0];
        return;
    }
    for (int64_t i = 0, at = b->first_column + column; i < n;) {
        const int64_t left = b->scale_columns - at % b->scale_columns, end = i + left < n ? i + left : n;
        const float scale = scales[at / b->scale_columns];
        at += end - i;
        for (; i < end; i++)
            values[i] *= scale;
    }
}

/* Whether bytes hold whole codes of one codebook of numbers. */
static int has_byte_values(const CodebookBlock *b)
{
    const int is_dense = !b->n_planes && b->width && 8 % b->width == 0;
    return b->dim == 1 && !b->row_group && !b->column_group && (is_dense || b->n_planes == 1);
}

static ALWAYS_INLINE int decode(const CodebookBlock *b, int instruction_set)
{
    DigitTable tables[MOST_PLANES];
    ByteValues of_bytes;
    uint32_t codes[TOGETHER], largest = 0;
    float values[TOGETHER];
    uint64_t covered = 1; /* codes that the packing can hold */
    const int by_bytes = has_byte_values(b);
#ifdef HAS_X86
    uint8_t spaces[2][TOGETHER + 2 * DIGITS];
    const int by_pairs = instruction_set == AVX512 && b->n_planes == 2 && b->dim == 1 && b->book && !b->column_group;
#endif
    for (int p = 0; p < b->n_planes; p++) {
        if (!is_plane_sound(b, p))
            return 0;
        if (!by_bytes)
            fill_digits(tables[p], b->base[p], b->per_byte[p]);
        covered *= (uint64_t)b->base[p]; /* below 2^24 (COD-004) */
    }
    if (!b->n_planes) {
        covered = (uint64_t)1 << b->width;
        if (!is_end_zero(b))
            return 0;
    }
    if (by_bytes) {
        const int base = b->n_planes ? b->base[0] : 1 << b->width, per_byte = b->n_planes ? b->per_byte[0] : 8 / b->width;
        if (!fill_byte_values(&of_bytes, base, per_byte, b->entries, b->book, (int32_t)b->zero, b->book ? 0 : b->steps[0],
                              b->section[0], b->section_nbytes[0]))
            return 0;
    }
    /* Rows that differ in nothing are one */
    const int is_one = !b->row_group && !b->column_group && !b->scales && b->n_subvectors * b->dim == b->n_columns;
    CodebookBlock one = *b;
    if (is_one)
        one.n_rows = 1, one.n_columns *= b->n_rows, one.n_subvectors *= b->n_rows;
    const int is_direct = !b->adds; /* values are made where they belong */
    const int64_t most = is_direct && by_bytes && !b->scales ? one.n_subvectors : is_direct ? TOGETHER : TOGETHER / b->dim;
    for (int64_t row = 0; row < one.n_rows; row++)
        for (int64_t first = 0; first < one.n_subvectors; first += most) {
            const int64_t n = one.n_subvectors - first < most ? one.n_subvectors - first : most;
            const int64_t at = row * one.n_subvectors + first, column = first * one.dim;
            const int64_t left = one.n_columns - column, n_values = n * one.dim < left ? n * one.dim : left;
            float *const out = one.out + row * one.n_columns + column, *const made = is_direct ? out : values;
            if (by_bytes) {
                put_byte_values(&of_bytes, b->section[0], at, n, made, instruction_set);
#ifdef HAS_X86
            } else if (by_pairs) {
                const float *book = b->book + (b->row_group ? b->row_group[row] : 0) * b->entries;
                const uint8_t *low = digits_of(b, 0, tables[0], at, n, spaces[0]);
                const uint8_t *high = digits_of(b, 1, tables[1], at, n, spaces[1]);
                if (!look_up_pairs(book, b->entries, low, high, b->base[0], n, made)) /* COD-001 */
                    return 0;
#endif
            } else {
                if (b->n_planes)
                    unpack_planes(b, tables, at, n, codes);
                else
                    unpack_dense(b, at, n, codes);
                if (covered > (uint64_t)b->entries) { /* COD-001 */
                    for (int64_t i = 0; i < n; i++)
                        largest = codes[i] > largest ? codes[i] : largest;
                    if (largest >= (uint64_t)b->entries)
                        return 0;
                }
                look_up(&one, row, first, n, codes, made);
            }
            if (b->scales)
                multiply(&one, row, column, n_values, made);
            for (int64_t i = 0; !is_direct && i < n_values; i++)
                out[i] += made[i];
        }
    return 1;
}

static int decode_scalar(const CodebookBlock *b) { return decode(b, SCALAR); }

#ifdef HAS_X86
TARGET_AVX2 static int decode_avx2(const CodebookBlock *b) { return decode(b, AVX2); }
TARGET_AVX512 static int decode_avx512(const CodebookBlock *b) { return decode(b, AVX512); }
static int (*const DECODERS[])(const CodebookBlock *) = {decode_scalar, decode_avx2, decode_avx512};
#else
static int (*const DECODERS[])(const CodebookBlock *) = {decode_scalar, decode_scalar, decode_scalar};
#endif

int codebook_decode(const CodebookBlock *b, int instruction_set) { return DECODERS[instruction_set](b); }
