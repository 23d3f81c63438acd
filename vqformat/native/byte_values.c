/* Values of bytes that hold whole codes of one codebook of numbers. */

#include "byte_values.h"

#include <string.h>

#include "instruction_sets.h"

int fill_byte_values(ByteValues *t, int base, int per_byte, int64_t entries, const float *book, int32_t zero,
                     float step, const uint8_t *bytes, int64_t n)
{
    float of_code[256] = {0};
    uint8_t is_bad[256] = {0}, digits[DIGITS] = {0}, found = 0;
    t->per_byte = per_byte, t->stored = per_byte > 4 ? 8 : per_byte > 2 ? 4 : per_byte;
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
    for (int64_t i = 0; i < n && base > entries; i++) /* digits after the last code are 0, which is in the codebook */
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
#endif

typedef int64_t Put(const ByteValues *, const uint8_t *, int64_t, float *);
#ifdef HAS_X86
static Put *const PROGRESSION[] = {progression_scalar, progression_avx2, progression_avx512};
static Put *const GATHER[] = {NULL, gather_avx2, gather_avx512}, *const PERMUTE[] = {NULL, permute_avx2, permute_avx512};
#else
static Put *const PROGRESSION[] = {progression_scalar, progression_scalar, progression_scalar};
static Put *const GATHER[N_INSTRUCTION_SETS] = {NULL}, *const PERMUTE[N_INSTRUCTION_SETS] = {NULL};
#endif

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
    Put *const put = per_byte == 1 && t->is_progression ? PROGRESSION[instruction_set]
                     : per_byte == 1                    ? GATHER[instruction_set]
                     : t->has_halves                    ? PERMUTE[instruction_set]
                                                        : NULL;
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
