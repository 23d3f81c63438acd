/* Byte planes of words (SPEC 8) and their Huffman codes (RFC 8878, 4.2.2). */

#ifndef VQFORMAT_PLANES_H
#define VQFORMAT_PLANES_H

#include <stdint.h>

/* Split n words of 2, 4 or 8 bytes into their byte planes, which follow each other in `planes`, the lowest byte first.
   If `rotates`, each word is rotated left by one bit before. */
void planes_split(const void *words, int64_t n, int width, int rotates, uint8_t *planes);

/* Split the codes of n words of bfloat16 into planes: bits 0 and 1 of four codes to a byte, bits 2 to 5 of two codes to a
   byte, bits 6 to 12 of a code to a byte. The code of a word is its magnitude less `below`, but 0 at least, and its sign
   in bit 12. The lengths of the planes are n / 4 and n / 2 rounded up, and n. */
void planes_split_floats(const uint16_t *words, int64_t n, int below, uint8_t *low, uint8_t *middle, uint8_t *high);

/* How often each of the 256 values of a byte occurs among n < 2^32. */
void planes_count(const uint8_t *data, int64_t n, uint32_t *counts);

/* Bits of the Huffman code of each of 256 values, at most `longest`, 0 for those that do not occur; at least two do, and
   all counts add up to less than 2^32. */
void planes_code_lengths(const uint32_t *counts, int longest, uint32_t *lengths);

/* Write the codes of n bytes as a Huffman stream, from the last byte to the first, and a bit that is set after them.
   codes: for each value its code, in the bits from 8 on, and in the lowest 8 its length, at most 11.
   stream: room for the bits, and 8 bytes more. Returns how many bytes the stream has. */
int64_t planes_huffman(const uint8_t *data, int64_t n, const uint32_t *codes, uint8_t *stream);

#endif
