/* The device's own rows. */
#include <string.h>

#include "mh_inner.h"

void mh_store_init(mh_store *s, const mh_port *port, uint32_t value_bytes) {
    s->port = port;
    s->value_bytes = value_bytes;
    s->row_bytes = value_bytes ? (value_bytes + 2 + 3) / 4 * 4 : 0;
    s->count[MH_TRAIN] = s->count[MH_TEST] = s->count[MH_ADAPT] = 0;
}

uint32_t mh_store_used(const mh_store *s) {
    return (s->count[MH_TRAIN] + s->count[MH_TEST] + s->count[MH_ADAPT]) * s->row_bytes;
}

static uint32_t place_of(const mh_store *s, int set, uint32_t row) {
    int i;
    for (i = 0; i < set; i++) row += s->count[i];
    return row * s->row_bytes;
}

const uint8_t *mh_store_row(const mh_store *s, int set, uint32_t row) { return s->port->store + place_of(s, set, row); }

int32_t mh_store_label(const mh_store *s, int set, uint32_t row) {
    int16_t label;
    memcpy(&label, mh_store_row(s, set, row) + s->value_bytes, 2);
    return label;
}

/* A flash that is erased in pages only: what lies before `at` in its page is kept in the spare memory meanwhile. A power
   failure would lose it, but after a restart all rows are pushed again. */
static enum mh_error erase_inside(mh_store *s, uint32_t at, uint32_t end, uint8_t *spare, uint32_t room) {
    uint32_t page = at / MH_FLASH_PAGE * MH_FLASH_PAGE, kept = at - page;
    if (kept == 0 || kept > room) return MH_ERROR_FLASH;
    memcpy(spare, s->port->store + page, kept);
    if (s->port->flash_erase(s->port->self, s->port->store + page, end - page) < 0) return MH_ERROR_FLASH;
    return mh_flash_put(s->port, s->port->store + page, spare, kept);
}

/* Forgets a set and those behind it, and makes their place ready to be written. */
enum mh_error mh_store_begin(mh_store *s, int set, uint8_t *spare, uint32_t room) {
    uint32_t at, i, end = s->port->store_bytes / 4 * 4;
    for (i = (uint32_t)set; i < MH_NUM_SETS; i++) s->count[i] = 0;
    at = place_of(s, set, 0);
    for (i = at; i < end; i++)
        if (s->port->store[i] != 0xff) break;
    if (i >= end) return MH_OK;
    if (s->port->flash_erase(s->port->self, s->port->store + at, end - at) >= 0) return MH_OK;
    return erase_inside(s, at, end, spare, room);
}

/* Whether num more rows of a set fit, with no later set in their way. */
enum mh_error mh_store_fits(const mh_store *s, int set, uint32_t num) {
    int i;
    for (i = set + 1; i < MH_NUM_SETS; i++)
        if (s->count[i]) return MH_ERROR_STORE_ORDER;
    if (num > MH_MAX_ROWS - s->count[set]) return MH_ERROR_STORE_FULL;
    if (((uint64_t)mh_store_used(s) + (uint64_t)num * s->row_bytes) > s->port->store_bytes) return MH_ERROR_STORE_FULL;
    return MH_OK;
}

/* Bytes at .. at + num of the stored value of a row that isn't counted yet; at is a multiple of 4. */
enum mh_error mh_store_put(mh_store *s, int set, uint32_t row, uint32_t at, const void *from, uint32_t num) {
    uint8_t *to = s->port->store + place_of(s, set, row) + at;
    uint32_t whole = num / 4 * 4;
    enum mh_error error = whole ? mh_flash_put(s->port, to, from, whole) : MH_OK;
    if (error == MH_OK && whole < num) {
        uint8_t last[4]; /* the label may share this word */
        memcpy(last, to + whole, 4);
        memcpy(last, (const uint8_t *)from + whole, num - whole);
        error = mh_flash_put(s->port, to + whole, last, 4);
    }
    return error;
}

enum mh_error mh_store_put_label(mh_store *s, int set, uint32_t row, int32_t label) {
    uint32_t at = place_of(s, set, row) + s->value_bytes;
    int16_t short_label = (int16_t)label;
    uint8_t word[8], bytes[2];
    uint32_t first = at / 4 * 4, num = at + 2 > first + 4 ? 8 : 4;
    memcpy(bytes, &short_label, 2);
    memcpy(word, s->port->store + first, num);
    word[at - first] = bytes[0], word[at - first + 1] = bytes[1];
    return mh_flash_put(s->port, s->port->store + first, word, num);
}
