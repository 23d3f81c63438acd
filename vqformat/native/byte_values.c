/* Values of bytes that hold whole codes of one codebook of numbers. */

#include "byte_values.h"

#include <string.h>

#include "instruction_sets.h"

uint8_t largest_byte(const uint8_t *bytes, int64_t n)
{
    uint8_t largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = bytes[i] > largest ? bytes[i] : largest;
    return largest;
}

int fill_byte_values(ByteValues *t, int base, int per_byte, int64_t entries, const float *book, int32_t zero,
                     float step, const uint8_t *bytes, int64_t n)
{
    float of_code[256] = {0};
    uint8_t is_bad[256] = {0}, digits[DIGITS] = {0}, found = 0;
    t->base = base, t->per_byte = per_byte, t->stored = per_byte > 4 ? 8 : per_byte > 2 ? 4 : per_byte;
    t->is_progression = !book, t->zero = zero, t->step = step;
    t->has_halves = base == 16 && per_byte == 2;
    for (int code = 0; code < base && code < entries; code++)
        of_code[code] = book ? book[code] : (float)(code - zero) * step;
    memcpy(t->of_code, of_code, sizeof t->of_code);
    memset(t->values, 0, (size_t)(256 * t->stored) * sizeof *t->values);
    for (int byte = 0; byte < 256; byte++) {
        for (int k = 0; k < per_byte; k++) {
            t->values[byte * t->stored + k] = of_code[digits[k]];
            is_bad[byte] |= digits[k] >= entries;
        }
        for (int k = 0; k < per_byte && ++digits[k] == (uint8_t)base; k++) /* the digits of the next byte */
            digits[k] = 0;
    }
    if (base <= entries)
        return 1;
    if (per_byte == 1)
        return largest_byte(bytes, n) < entries;
    for (int64_t i = 0; i < n; i++) /* digits after the last code are 0, which is in the codebook */
        found |= is_bad[bytes[i]];
    return !found;
}

/* Values of ``n`` codes. Each function returns how many of them it has written. */

static ALWAYS_INLINE int64_t put_progression(const ByteValues *t, const uint8_t *codes, int64_t n, float *out)
{
    const int32_t zero = t->zero;
    const float step = t->step;
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)((int32_t)codes[i] - zero) * step;
    return n;
}

static int64_t progression_scalar(const ByteValues *t, const uint8_t *codes, int64_t n, float *out)
{
    return put_progression(t, codes, n, out);
}

#ifdef HAS_X86
TARGET_AVX2 static int64_t progression_avx2(const ByteValues *t, const uint8_t *codes, int64_t n, float *out)
{
    return put_progression(t, codes, n, out);
}

TARGET_AVX512 static int64_t progression_avx512(const ByteValues *t, const uint8_t *codes, int64_t n, float *out)
{
    return put_progression(t, codes, n, out);
}

/* Codes of one byte each. */
TARGET_AVX2 static int64_t gather_avx2(const ByteValues *t, const uint8_t *codes, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i indices = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + i)));
        _mm256_storeu_ps(out + i, _mm256_i32gather_ps(t->values, indices, 4));
    }
    return i;
}

TARGET_AVX512 static int64_t gather_avx512(const ByteValues *t, const uint8_t *codes, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512i indices = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + i)));
        _mm512_storeu_ps(out + i, _mm512_i32gather_ps(indices, t->values, 4));
    }
    return i;
}

/* Values of sixteen codes. Permutations choose one of 32 values in each part; bits 5 and 6 of a code choose the part. */
TARGET_AVX512 static ALWAYS_INLINE __m512 choose(const __m512 *values, __m512i codes, int n_parts)
{
    __m512 parts[4];
    for (int i = 0; i < n_parts; i++)
        parts[i] = _mm512_permutex2var_ps(values[2 * i], codes, values[2 * i + 1]);
    for (int n = n_parts / 2, bit = 32; n; n /= 2, bit *= 2) {
        const __mmask16 is_odd = _mm512_test_epi32_mask(codes, _mm512_set1_epi32(bit));
        for (int i = 0; i < n; i++)
            parts[i] = _mm512_mask_blend_ps(is_odd, parts[2 * i], parts[2 * i + 1]);
    }
    return parts[0];
}

TARGET_AVX512 static ALWAYS_INLINE int64_t choose_all(const ByteValues *t, const uint8_t *codes, int64_t n, float *out,
                                                      int n_parts)
{
    __m512 values[8];
    for (int i = 0; i < 2 * n_parts; i++)
        values[i] = _mm512_loadu_ps(t->values + 16 * i);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512i of_lanes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + i)));
        _mm512_storeu_ps(out + i, choose(values, of_lanes, n_parts));
    }
    return i;
}

/* The four bytes of a value are chosen one by one, each from 256 by two permutations and by bit 7 of the code. */
TARGET_VBMI static int64_t bytes_vbmi(const ByteValues *t, const uint8_t *codes, int64_t n, float *out)
{
    uint8_t bytes[4][256];
    for (int i = 0; i < 256; i++) {
        uint8_t value[4];
        memcpy(value, t->values + i, sizeof value);
        for (int k = 0; k < 4; k++)
            bytes[k][i] = value[k];
    }
    __m512i tables[4][4];
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++)
            tables[k][i] = _mm512_loadu_si512(bytes[k] + 64 * i);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); /* undone below */
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m512i chosen = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(codes + i));
        const __mmask64 is_high = _mm512_movepi8_mask(chosen);
        __m512i parts[4];
        for (int k = 0; k < 4; k++)
            parts[k] = _mm512_mask_blend_epi8(is_high, _mm512_permutex2var_epi8(tables[k][0], chosen, tables[k][1]),
                                              _mm512_permutex2var_epi8(tables[k][2], chosen, tables[k][3]));
        const __m512i low = _mm512_unpacklo_epi8(parts[0], parts[1]), high = _mm512_unpacklo_epi8(parts[2], parts[3]);
        const __m512i low_2 = _mm512_unpackhi_epi8(parts[0], parts[1]), high_2 = _mm512_unpackhi_epi8(parts[2], parts[3]);
        _mm512_storeu_si512(out + i, _mm512_unpacklo_epi16(low, high));
        _mm512_storeu_si512(out + i + 16, _mm512_unpackhi_epi16(low, high));
        _mm512_storeu_si512(out + i + 32, _mm512_unpacklo_epi16(low_2, high_2));
        _mm512_storeu_si512(out + i + 48, _mm512_unpackhi_epi16(low_2, high_2));
    }
    return i;
}

/* Choosing from 32 values takes half the time of a gather, from 128 four fifths. */
TARGET_AVX512 static int64_t bytes_avx512(const ByteValues *t, const uint8_t *codes, int64_t n, float *out)
{
    return t->base <= 32    ? choose_all(t, codes, n, out, 1)
           : t->base <= 64  ? choose_all(t, codes, n, out, 2)
           : HAS_VBMI       ? bytes_vbmi(t, codes, n, out)
           : t->base <= 128 ? choose_all(t, codes, n, out, 4)
                            : gather_avx512(t, codes, n, out);
}

/* Eight codes of 4 bits each. */
static ALWAYS_INLINE int32_t read_codes(const uint8_t *bytes)
{
    int32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

/* Codes of 4 bits each. Above those of an index are bits of the next codes, which a permutation ignores. */
TARGET_AVX2 static int64_t permute_avx2(const ByteValues *t, const uint8_t *bytes, int64_t n, float *out)
{
    const __m256 low = _mm256_loadu_ps(t->of_code), high = _mm256_loadu_ps(t->of_code + 8);
    const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8, bytes += 4) {
        const __m256i indices = _mm256_srlv_epi32(_mm256_set1_epi32(read_codes(bytes)), shifts);
        const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(indices, 28)); /* bit 3 */
        _mm256_storeu_ps(out + i, _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, indices),
                                                   _mm256_permutevar8x32_ps(high, indices), is_high));
    }
    return i;
}

TARGET_AVX512 static int64_t permute_avx512(const ByteValues *t, const uint8_t *bytes, int64_t n, float *out)
{
    const __m512 values = _mm512_loadu_ps(t->of_code);
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16, bytes += 8) {
        const __m256i first = _mm256_set1_epi32(read_codes(bytes));
        const __m256i second = _mm256_set1_epi32(read_codes(bytes + 4));
        const __m512i words = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), values));
    }
    return i;
}

/* Several codes of a byte that are digits of any base up to 16. */

enum { LANES = 16 };

/* For each lane the number of its byte. A byte divided by a power of the base is its product by ``factor`` over 2^16. For the
   power 1 it is the byte itself: there ``factor`` is 0, and ``first`` has all bits. */
typedef struct {
    uint8_t byte[LANES];
    uint16_t factor[LANES], first[LANES];
} Digits;

static void fill_digits(Digits *digits, int base, int per_byte)
{
    for (int lane = 0; lane < LANES; lane++) {
        int power = 1;
        for (int k = 0; k < lane % per_byte; k++)
            power *= base;
        digits->byte[lane] = (uint8_t)(lane / per_byte);
        digits->factor[lane] = (uint16_t)(power == 1 ? 0 : (65535 + power) / power);
        digits->first[lane] = power == 1 ? 0xFFFF : 0;
    }
}

TARGET_AVX512 static int64_t digits_avx512(const ByteValues *t, const uint8_t *bytes, int64_t n, float *out)
{
    Digits digits;
    fill_digits(&digits, t->base, t->per_byte);
    const __m512 values = _mm512_loadu_ps(t->of_code);
    const __m128i places = _mm_loadu_si128((const __m128i *)digits.byte);
    const __m256i factors = _mm256_loadu_si256((const __m256i *)digits.factor);
    const __m256i firsts = _mm256_loadu_si256((const __m256i *)digits.first);
    const __m256i base = _mm256_set1_epi16((int16_t)t->base);
    const __m256i by_base = _mm256_set1_epi16((int16_t)((65535 + t->base) / t->base));
    const int taken = LANES / t->per_byte, made = taken * t->per_byte;
    int64_t i = 0;
    for (; i + LANES * t->per_byte <= n; i += made, bytes += taken) { /* there are as many bytes as are loaded */
        const __m128i loaded = _mm_loadu_si128((const __m128i *)bytes);
        const __m256i words = _mm256_cvtepu8_epi16(_mm_shuffle_epi8(loaded, places));
        const __m256i quotients = _mm256_or_si256(_mm256_mulhi_epu16(words, factors), _mm256_and_si256(words, firsts));
        const __m256i above = _mm256_mullo_epi16(_mm256_mulhi_epu16(quotients, by_base), base);
        const __m512i codes = _mm512_cvtepu16_epi32(_mm256_sub_epi16(quotients, above));
        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(codes, values)); /* those that are too many are written over */
    }
    return i;
}
#endif

typedef int64_t Put(const ByteValues *, const uint8_t *, int64_t, float *);
#ifdef HAS_X86
static Put *const PROGRESSION[] = {progression_scalar, progression_avx2, progression_avx512};
static Put *const BYTES[] = {NULL, gather_avx2, bytes_avx512}, *const HALVES[] = {NULL, permute_avx2, permute_avx512};
static Put *const DIGITS_OF[] = {NULL, NULL, digits_avx512};
#else
static Put *const PROGRESSION[] = {progression_scalar, progression_scalar, progression_scalar};
static Put *const BYTES[N_INSTRUCTION_SETS] = {NULL}, *const HALVES[N_INSTRUCTION_SETS] = {NULL};
static Put *const DIGITS_OF[N_INSTRUCTION_SETS] = {NULL};
#endif

/* The function that is faster than a table of bytes; NULL if there is none. */
static Put *put_of(const ByteValues *t, int instruction_set)
{
    if (t->per_byte == 1)
        return t->is_progression ? PROGRESSION[instruction_set] : BYTES[instruction_set];
    return t->has_halves ? HALVES[instruction_set] : DIGITS_OF[instruction_set];
}

/* Write the values of ``n`` bytes, ``stored`` at a time: those that are too many are written over by the next byte. */
static ALWAYS_INLINE float *expand(const ByteValues *t, const uint8_t *bytes, int64_t n, int stored, int per_byte,
                                   float *out)
{
    for (int64_t i = 0; i < n; i++, out += per_byte)
        memcpy(out, t->values + stored * bytes[i], (size_t)stored * sizeof *out);
    return out;
}

void put_byte_values(const ByteValues *t, const uint8_t *bytes, int64_t first, int64_t n, float *out,
                     int instruction_set)
{
    const int per_byte = t->per_byte, stored = t->stored;
    const int64_t skipped = first % per_byte;
    float *const end = out + n;
    bytes += first / per_byte;
    if (skipped) {
        const int64_t left = per_byte - skipped < n ? per_byte - skipped : n;
        memcpy(out, t->values + stored * *bytes++ + skipped, (size_t)left * sizeof *out);
        out += left;
    }
    Put *const put = put_of(t, instruction_set);
    if (put) {
        const int64_t done = put(t, bytes, end - out, out);
        out += done, bytes += done / per_byte;
    }
    /* Bytes whose values fit, with those that are too many */
    const int64_t n_whole = end - out < stored ? 0 : (end - out - stored) / per_byte + 1;
    switch (per_byte) {
    case 1: out = expand(t, bytes, n_whole, 1, 1, out); break;
    case 2: out = expand(t, bytes, n_whole, 2, 2, out); break;
    case 3: out = expand(t, bytes, n_whole, 4, 3, out); break;
    case 4: out = expand(t, bytes, n_whole, 4, 4, out); break;
    case 8: out = expand(t, bytes, n_whole, 8, 8, out); break;
    default: out = expand(t, bytes, n_whole, 8, per_byte, out);
    }
    bytes += n_whole;
    for (; out < end; out += per_byte) {
        const int64_t left = end - out < per_byte ? end - out : per_byte;
        memcpy(out, t->values + stored * *bytes++, (size_t)left * sizeof *out);
    }
}
