#include "frames.h"

#include <string.h>

/* CRC-32 of IEEE 802.3, bits reflected, as zlib has it. */
#define POLYNOMIAL 0xEDB88320u

static uint32_t by_byte[8][256]; /* by_byte[n][b]: what byte b makes of the sum when n bytes follow it */

/* Eight bytes at a time, each by its own table. */
static uint32_t by_tables(uint32_t sum, const uint8_t *data, int64_t size)
{
    for (; size >= 8; data += 8, size -= 8) {
        uint32_t low = sum ^ ((uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24);
        sum = by_byte[7][low & 0xFF] ^ by_byte[6][low >> 8 & 0xFF] ^ by_byte[5][low >> 16 & 0xFF] ^ by_byte[4][low >> 24] ^
              by_byte[3][data[4]] ^ by_byte[2][data[5]] ^ by_byte[1][data[6]] ^ by_byte[0][data[7]];
    }
    for (; size > 0; data++, size--)
        sum = (sum >> 8) ^ by_byte[0][(sum ^ *data) & 0xFF];
    return sum;
}

#if defined(__PCLMUL__) && defined(__SSE2__)
#define MK_PRODUCTS

/* A vector of one or four 128-bit parts, each of which is multiplied by itself. */
#if defined(__VPCLMULQDQ__) && defined(__AVX512F__) && !defined(__clang__)
#define PARTS 4
#define TIMES(a, b, which) __builtin_ia32_vpclmulqdq_v8di(a, b, which)
#else
#define PARTS 1
#define TIMES(a, b, which) __builtin_ia32_pclmulqdq128(a, b, which)
#endif

typedef long long v2 __attribute__((vector_size(16)));
typedef long long wide __attribute__((vector_size(16 * PARTS)));
typedef long long v2_any __attribute__((vector_size(16), aligned(1), may_alias));
typedef long long wide_any __attribute__((vector_size(16 * PARTS), aligned(1), may_alias));

static v2 next;  /* takes a part 128 bits ahead */
static wide far; /* takes a vector four vectors ahead */

/* x^n mod P, reflected, one place up as products of reflected numbers lie one place down. */
static long long power(int n)
{
    uint32_t sum = 0x80000000u; /* x^0 */
    for (int i = 0; i < n; i++)
        sum = (sum >> 1) ^ (sum & 1 ? POLYNOMIAL : 0);
    return (long long)((uint64_t)sum << 1);
}

static inline v2 folded(v2 a)
{
    return __builtin_ia32_pclmulqdq128(a, next, 0x00) ^ __builtin_ia32_pclmulqdq128(a, next, 0x11);
}

/* Gopal, Ozturk, Guilford, Wolrich, Feghali, Dixon and Karakoyunlu, "Fast CRC computation for generic polynomials using
   PCLMULQDQ instruction", Intel 2009: a product takes bytes to where they make the same sum. Four vectors side by side,
   then their parts one after another, then what is left; the last 16 bytes by tables. */
static uint32_t by_products(uint32_t sum, const uint8_t **data, int64_t *size)
{
    const wide_any *from = (const wide_any *)*data;
    wide part[4];
    int64_t left = *size - (int64_t)sizeof part;
    for (int n = 0; n < 4; n++)
        part[n] = from[n];
    part[0][0] ^= (long long)sum;
    for (from += 4; left >= (int64_t)sizeof part; from += 4, left -= (int64_t)sizeof part)
        for (int n = 0; n < 4; n++)
            part[n] = TIMES(part[n], far, 0x00) ^ TIMES(part[n], far, 0x11) ^ from[n];
    v2 each[4 * PARTS], whole;
    memcpy(each, part, sizeof part);
    whole = each[0];
    for (int n = 1; n < 4 * PARTS; n++)
        whole = folded(whole) ^ each[n];
    const v2_any *rest = (const v2_any *)from;
    for (; left >= 16; rest++, left -= 16)
        whole = folded(whole) ^ *rest;
    uint8_t last[16];
    memcpy(last, &whole, sizeof last);
    *data = (const uint8_t *)rest;
    *size = left;
    return by_tables(0, last, sizeof last);
}

#endif

void mk_crc_prepare(void)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t sum = b;
        for (int bit = 0; bit < 8; bit++)
            sum = (sum >> 1) ^ (sum & 1 ? POLYNOMIAL : 0);
        by_byte[0][b] = sum;
    }
    for (int n = 1; n < 8; n++)
        for (uint32_t b = 0; b < 256; b++)
            by_byte[n][b] = (by_byte[n - 1][b] >> 8) ^ by_byte[0][by_byte[n - 1][b] & 0xFF];
#ifdef MK_PRODUCTS
    next = (v2){power(128 + 32), power(128 - 32)};
    for (int n = 0; n < 2 * PARTS; n++)
        far[n] = power(4 * 128 * PARTS + (n % 2 ? -32 : 32));
#endif
}

uint32_t mk_crc32(const uint8_t *data, int64_t size)
{
    uint32_t sum = 0xFFFFFFFFu;
#ifdef MK_PRODUCTS
    if (size >= 64 * PARTS)
        sum = by_products(sum, &data, &size);
#endif
    return ~by_tables(sum, data, size);
}
