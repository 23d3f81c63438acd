/* CRC-32 (SPEC CNV-004), by multiplications without carries.

   Gopal and others, Intel 2009, "Fast CRC computation for generic polynomials using PCLMULQDQ". 64 bytes are folded onto
   the next 64 at a time, or 256 onto 256 by products of vectors, then 16 onto 16; then Barrett's reduction. The constants
   are powers of x modulo the polynomial, with reflected bits. */

#include "crc.h"

#include "instruction_sets.h"

#ifdef HAS_X86
#define TARGET_CRC __attribute__((target("pclmul,sse4.1")))

int has_crc32(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

/* ``x`` times the two constants, plus what lies where it is folded to. */
TARGET_CRC static ALWAYS_INLINE __m128i fold(__m128i x, __m128i constants, __m128i onto)
{
    const __m128i low = _mm_clmulepi64_si128(x, constants, 0x00), high = _mm_clmulepi64_si128(x, constants, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), onto);
}

#define TARGET_WIDE_CRC __attribute__((target("vpclmulqdq,avx512f,pclmul,sse4.1")))
enum { WIDE_NBYTES = 256, FROM_NBYTES = 1024 };

static int has_wide_crc(void) { return __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f"); }

TARGET_WIDE_CRC static ALWAYS_INLINE __m512i fold_wide(__m512i x, __m512i constants, __m512i onto)
{
    const __m512i low = _mm512_clmulepi64_epi128(x, constants, 0x00), high = _mm512_clmulepi64_epi128(x, constants, 0x11);
    return _mm512_ternarylogic_epi64(low, high, onto, 0x96); /* exclusive or of three */
}

/* Fold all of ``n`` bytes but less than 256 to the 64 of ``folded``, 256 bytes at a time. Returns where the others begin. */
TARGET_WIDE_CRC static const __m128i *fold_many(const uint8_t *bytes, int64_t n, uint32_t before, __m128i *folded)
{
    const __m512i by_256 = _mm512_broadcast_i32x4(_mm_set_epi64x(0x01322d1430, 0x011542778a));
    const __m512i by_64 = _mm512_broadcast_i32x4(_mm_set_epi64x(0x01c6e41596, 0x0154442bd4));
    const uint8_t *const end = bytes + n;
    __m512i x[4];
    for (int i = 0; i < 4; i++)
        x[i] = _mm512_loadu_si512(bytes + 64 * i);
    x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)~before)));
    for (bytes += WIDE_NBYTES; end - bytes >= WIDE_NBYTES; bytes += WIDE_NBYTES)
        for (int i = 0; i < 4; i++)
            x[i] = fold_wide(x[i], by_256, _mm512_loadu_si512(bytes + 64 * i));
    for (int i = 1; i < 4; i++)
        x[i] = fold_wide(x[i - 1], by_64, x[i]);
    _mm512_storeu_si512(folded, x[3]);
    return (const __m128i *)bytes;
}

TARGET_CRC uint32_t crc_of(const uint8_t *bytes, int64_t n, uint32_t before)
{
    const __m128i by_64 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4), by_16 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
    const __m128i by_8 = _mm_set_epi64x(0, 0x0163cd6124), barrett = _mm_set_epi64x(0x01f7011641, 0x01db710641);
    const __m128i low_halves = _mm_setr_epi32(-1, 0, -1, 0);
    const __m128i *next = (const __m128i *)bytes, *const end = (const __m128i *)(bytes + n);
    __m128i x[4];
    if (n >= FROM_NBYTES && has_wide_crc()) {
        next = fold_many(bytes, n, before, x);
    } else {
        for (int i = 0; i < 4; i++)
            x[i] = _mm_loadu_si128(next++);
        x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)~before));
    }
    for (; end - next >= 4; next += 4)
        for (int i = 0; i < 4; i++)
            x[i] = fold(x[i], by_64, _mm_loadu_si128(next + i));
    __m128i a = x[0];
    for (int i = 1; i < 4; i++)
        a = fold(a, by_16, x[i]);
    while (next < end)
        a = fold(a, by_16, _mm_loadu_si128(next++));
    a = _mm_xor_si128(_mm_srli_si128(a, 8), _mm_clmulepi64_si128(a, by_16, 0x10)); /* 128 bits to 96 */
    a = _mm_xor_si128(_mm_srli_si128(a, 4), _mm_clmulepi64_si128(_mm_and_si128(a, low_halves), by_8, 0x00)); /* to 64 */
    __m128i quotient = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(a, low_halves), barrett, 0x10), low_halves);
    a = _mm_xor_si128(a, _mm_clmulepi64_si128(quotient, barrett, 0x00));
    return ~(uint32_t)_mm_extract_epi32(a, 1);
}
#else
int has_crc32(void) { return 0; }

uint32_t crc_of(const uint8_t *bytes, int64_t n, uint32_t before)
{
    (void)bytes, (void)n;
    return before;
}
#endif
