#include "mh_cobs.h"

void mh_cobs_begin(mh_cobs *c, uint8_t *to, uint32_t max) {
    c->to = to;
    c->max = max;
    c->num = 0;
    c->code = c->left = c->is_long = 0;
}

static void put(mh_cobs *c, uint8_t byte) {
    if (c->num == c->max) {
        c->is_long = 1;
        return;
    }
    c->to[c->num++] = byte;
}

uint32_t mh_cobs_decode(mh_cobs *c, const uint8_t *from, uint32_t num, enum mh_cobs_status *status) {
    for (uint32_t i = 0; i < num; i++) {
        uint8_t byte = from[i];
        if (byte == 0) {
            *status = c->is_long ? MH_COBS_TOO_LONG
                      : c->left  ? MH_COBS_CODING
                      : c->code  ? MH_COBS_WHOLE
                                 : MH_COBS_EMPTY;
            return i + 1;
        }
        if (c->left) {
            put(c, byte);
            c->left--;
        } else {
            if (c->code != 0 && c->code != 0xff) put(c, 0);
            c->code = byte;
            c->left = (uint8_t)(byte - 1);
        }
    }
    *status = MH_COBS_MORE;
    return num;
}

uint32_t mh_cobs_encode(const uint8_t *from, uint32_t num, uint8_t *to) {
    uint32_t code_at = 0, at = 1;
    for (uint32_t i = 0; i < num; i++) {
        uint8_t byte = from[i];
        if (byte != 0) to[at++] = byte;
        if (byte == 0 || (at - code_at == 255 && i + 1 < num)) {
            to[code_at] = (uint8_t)(at - code_at);
            code_at = at++;
        }
    }
    to[code_at] = (uint8_t)(at - code_at);
    return at;
}
