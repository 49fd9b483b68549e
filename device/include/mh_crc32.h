/* CRC-32 (zlib's, ISO 3309) with a table of 64 bytes. */
#ifndef MH_CRC32_H
#define MH_CRC32_H

#include <stdint.h>

/* The CRC of some more bytes: begin with 0, hand each result to the next call. from: [num]. */
uint32_t mh_crc32(uint32_t crc, const void *from, uint32_t num);

#endif
