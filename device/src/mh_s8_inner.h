/* What the files of the int8 kernels share. */
#ifndef MH_S8_INNER_H
#define MH_S8_INNER_H

#include "mh_s8.h"

/* rows * columns * size, or MH_NONE32 where that doesn't fit */
static inline uint32_t mh_bytes_s8(uint32_t rows, uint32_t columns, uint32_t size) {
    uint64_t bytes = (uint64_t)rows * columns;
    return bytes > 0x7fffffffu / size ? MH_NONE32 : (uint32_t)bytes * size;
}

void mh_depthwise_plain_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                           const mh_range_s8 *range);

#endif
