/* CRC-32 (SPEC CNV-004) of many bytes. */

#ifndef VQFORMAT_CRC_H
#define VQFORMAT_CRC_H

#include <stdint.h>

/* Whether the processor can multiply without carries, which ``crc_of`` needs. */
int has_crc32(void);

/* The CRC-32 of ``n`` bytes, at least 64 and a multiple of 16, that follow bytes whose CRC-32 is ``before``. */
uint32_t crc_of(const uint8_t *bytes, int64_t n, uint32_t before);

#endif
