#include "planes.h"

#include <string.h>

enum { PIECE = 4096 }; /* words that are split into one plane after another, out of the cache */

#define SPLIT(type, k)                                                                                                 \
    static void split_##k(const type *words, int64_t n, int rotates, uint8_t *planes)                                  \
    {                                                                                                                  \
        type piece[PIECE];                                                                                             \
        for (int64_t start = 0; start < n; start += PIECE) {                                                           \
            int size = n - start < PIECE ? (int)(n - start) : PIECE;                                                   \
            for (int i = 0; i < size; i++) {                                                                           \
                type word = words[start + i];                                                                          \
                piece[i] = rotates ? (type)(word << 1 | word >> (8 * k - 1)) : word;                                   \
            }                                                                                                          \
            for (int p = 0; p < k; p++) {                                                                              \
                uint8_t *plane = planes + p * n + start;                                                               \
                for (int i = 0; i < size; i++)                                                                         \
                    plane[i] = (uint8_t)(piece[i] >> 8 * p);                                                           \
            }                                                                                                          \
        }                                                                                                              \
    }

SPLIT(uint16_t, 2)
SPLIT(uint32_t, 4)
SPLIT(uint64_t, 8)

void planes_split(const void *words, int64_t n, int width, int rotates, uint8_t *planes)
{
    if (width == 2)
        split_2(words, n, rotates, planes);
    else if (width == 4)
        split_4(words, n, rotates, planes);
    else
        split_8(words, n, rotates, planes);
}

void planes_count(const uint8_t *data, int64_t n, uint32_t *counts)
{
    uint32_t parts[4][256]; /* so that equal bytes in a row do not wait for each other */
    memset(parts, 0, sizeof parts);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        parts[0][data[i]]++, parts[1][data[i + 1]]++;
        parts[2][data[i + 2]]++, parts[3][data[i + 3]]++;
    }
    for (; i < n; i++)
        parts[0][data[i]]++;
    for (int value = 0; value < 256; value++)
        counts[value] = parts[0][value] + parts[1][value] + parts[2][value] + parts[3][value];
}

int64_t planes_huffman(const uint8_t *data, int64_t n, const uint32_t *codes, uint8_t *stream)
{
    uint64_t bits = 0;
    int used = 0;
    uint8_t *at = stream;
    int64_t i = n;
    for (; i >= 5; i -= 5) { /* 7 + 5 * 11 bits at most */
        for (int j = 1; j <= 5; j++) {
            uint32_t code = codes[data[i - j]];
            bits |= (uint64_t)(code >> 8) << used;
            used += code & 255;
        }
        for (int b = 0; b < 8; b++) /* what is above the used bits is written again */
            at[b] = (uint8_t)(bits >> 8 * b);
        at += used >> 3, bits >>= used & ~7, used &= 7;
    }
    for (; i > 0; i--) {
        uint32_t code = codes[data[i - 1]];
        bits |= (uint64_t)(code >> 8) << used;
        used += code & 255;
    }
    bits |= (uint64_t)1 << used++;
    for (; used > 0; used -= 8, bits >>= 8)
        *at++ = (uint8_t)bits;
    return at - stream;
}
