/* Byte planes of words (SPEC 8) and their Huffman codes (RFC 8878, 4.2.2). */

#ifndef VQFORMAT_PLANES_H
#define VQFORMAT_PLANES_H

#include <stdint.h>

/* Split n words of 2, 4 or 8 bytes into their byte planes, which follow each other in `planes`, the lowest byte first.
   If `rotates`, each word is rotated left by one bit before. */
void planes_split(const void *words, int64_t n, int width, int rotates, uint8_t *planes);

/* How often each of the 256 values of a byte occurs among n < 2^32. */
void planes_count(const uint8_t *data, int64_t n, uint32_t *counts);

/* Write the codes of n bytes as a Huffman stream, from the last byte to the first, and a bit that is set after them.
   codes: for each value its code, in the bits from 8 on, and in the lowest 8 its length, at most 11.
   stream: room for the bits, and 8 bytes more. Returns how many bytes the stream has. */
int64_t planes_huffman(const uint8_t *data, int64_t n, const uint32_t *codes, uint8_t *stream);

#endif
