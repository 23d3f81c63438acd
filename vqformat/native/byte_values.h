/* Values of bytes that hold whole codes of one codebook of numbers (SPEC 9, 10). */

#ifndef VQFORMAT_BYTE_VALUES_H
#define VQFORMAT_BYTE_VALUES_H

#include <stdint.h>

enum { DIGITS = 8 }; /* codes of a byte at most */

/* What each byte stands for. */
typedef struct {
    int base, per_byte; /* codes of a byte are below ``base`` */
    int has_halves;     /* whether each half of a byte is a code */
    int stored;         /* values of a byte in the table, with zeros behind them: 1, 2, 4 or 8 */
    int is_progression; /* whether the value of a code is (code - zero) * step */
    int32_t zero;
    float step;
    float of_code[16];  /* values of the first codes */
    float values[256 * DIGITS];
} ByteValues;

/* The largest of ``n`` bytes; 0 for none. */
uint8_t largest_byte(const uint8_t *bytes, int64_t n);

/* Fill the table.

   ``base`` is 2 to 256. ``book`` has ``entries`` values; or it is NULL, and the values are those of a progression.
   Returns whether none of ``n`` bytes has a code outside the codebook (COD-001). */
int fill_byte_values(ByteValues *table, int base, int per_byte, int64_t entries, const float *book, int32_t zero,
                     float step, const uint8_t *bytes, int64_t n);

/* Write the values of the codes ``first`` to ``first + n`` of these bytes. */
void put_byte_values(const ByteValues *table, const uint8_t *bytes, int64_t first, int64_t n, float *out,
                     int instruction_set);

#endif
