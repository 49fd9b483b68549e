/* Consistent overhead byte stuffing (Cheshire, Baker, 1999): a packet without zero bytes, and a zero behind it.
   A packet of n bytes takes at most n + n / 254 + 1 bytes, without the zero. */
#ifndef MH_COBS_H
#define MH_COBS_H

#include <stdint.h>

#define MH_COBS_OVERHEAD(num) ((num) / 254 + 1)

enum mh_cobs_status {
    MH_COBS_MORE = 0, /* the packet goes on in the bytes to come */
    MH_COBS_WHOLE = 1,
    MH_COBS_EMPTY = 2,    /* a zero right behind a zero */
    MH_COBS_CODING = 3,   /* the zero came within a block: bytes were lost */
    MH_COBS_TOO_LONG = 4  /* more than `max` bytes; nothing was written behind them */
};

typedef struct {
    uint8_t *to;
    uint32_t max, num; /* room for and number of decoded bytes */
    uint8_t code, left, is_long;
} mh_cobs;

void mh_cobs_begin(mh_cobs *c, uint8_t *to, uint32_t max);

/* Takes bytes up to and with the first zero; returns how many it took and sets the status. from: [num], num >= 1. */
uint32_t mh_cobs_decode(mh_cobs *c, const uint8_t *from, uint32_t num, enum mh_cobs_status *status);

/* Encodes from [num] to `to`, returns the bytes written. `from` may lie in the same buffer, MH_COBS_OVERHEAD(num) or more
   bytes behind `to`. */
uint32_t mh_cobs_encode(const uint8_t *from, uint32_t num, uint8_t *to);

#endif
