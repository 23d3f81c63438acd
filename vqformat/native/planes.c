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

void planes_split_floats(const uint16_t *words, int64_t n, int below, uint8_t *low, uint8_t *middle, uint8_t *high)
{
    uint16_t codes[PIECE];
    for (int64_t start = 0; start < n; start += PIECE) {
        const int size = n - start < PIECE ? (int)(n - start) : PIECE;
        const uint16_t *piece = words + start;
        for (int i = 0; i < size; i++) {
            const int magnitude = piece[i] & 0x7fff;
            codes[i] = (uint16_t)((magnitude > below ? magnitude - below : 0) | (piece[i] & 0x8000) >> 3);
        }
        for (int i = size; i < PIECE && i % 4; i++)
            codes[i] = 0; /* the last bytes are filled up with zeros */
        for (int i = 0; i < size; i++)
            high[start + i] = (uint8_t)(codes[i] >> 6);
        for (int i = 0; i < (size + 1) / 2; i++)
            middle[start / 2 + i] = (uint8_t)((codes[2 * i] >> 2 & 15) | (codes[2 * i + 1] >> 2 & 15) << 4);
        for (int i = 0; i < (size + 3) / 4; i++)
            low[start / 4 + i] = (uint8_t)((codes[4 * i] & 3) | (codes[4 * i + 1] & 3) << 2 |
                                           (codes[4 * i + 2] & 3) << 4 | (codes[4 * i + 3] & 3) << 6);
    }
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

/* The depths of n leaves, whose weights ascend, in a tree with the least sum of products (Huffman 1952). Of a leaf and a
   node of one weight, the leaf is taken first. */
static void find_depths(const uint64_t *leaves, int n, int *depths)
{
    uint64_t weights[511];
    int parents[511];
    memcpy(weights, leaves, (size_t)n * sizeof *weights);
    for (int new = n, leaf = 0, node = n; new < 2 * n - 1; new++) {
        weights[new] = 0;
        for (int k = 0; k < 2; k++) {
            const int child = node == new || (leaf < n && weights[leaf] <= weights[node]) ? leaf++ : node++;
            weights[new] += weights[child];
            parents[child] = new;
        }
    }
    int all[511];
    all[2 * n - 2] = 0;
    for (int child = 2 * n - 3; child >= 0; child--)
        all[child] = all[parents[child]] + 1;
    memcpy(depths, all, (size_t)n * sizeof *depths);
}

void planes_code_lengths(const uint32_t *counts, int longest, uint32_t *lengths)
{
    uint64_t found[256], raised[256], sum = 0;
    int used[256], depths[256], n = 0;
    for (int value = 0; value < 256; value++) {
        lengths[value] = 0;
        if (!counts[value])
            continue;
        int at = n++;
        for (; at > 0 && found[at - 1] > counts[value]; at--)
            found[at] = found[at - 1], used[at] = used[at - 1];
        found[at] = counts[value], used[at] = value;
        sum += counts[value];
    }
    find_depths(found, n, depths);
    for (uint64_t least = sum >> longest; depths[0] > longest; least += least / 2 + 1) { /* rare values: shorter codes */
        for (int i = 0; i < n; i++)
            raised[i] = found[i] > least ? found[i] : least;
        find_depths(raised, n, depths);
    }
    for (int i = 0; i < n; i++)
        lengths[used[i]] = (uint32_t)depths[i];
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
