/* The two slots of a device whose power fails while a new blob comes: a shared library for tests/parity/test_ops.py.

   The flash does `left` more things whole; the next one is done in part, and nothing after it. */
#include <string.h>

#include "mh_inner.h"

#define MAX 65536u

static uint8_t flash[2][MAX];
static int32_t left;
static uint32_t part; /* of 4: how much of the last thing is done */

int32_t power_update(const uint8_t *blob, uint32_t bytes, int32_t until, uint32_t quarters);
int32_t power_found(const uint8_t *blob, uint32_t bytes);
void power_fresh(void);
int32_t power_rows(void);

static uint32_t share(uint32_t num) {
    if (left > 0) return left--, num;
    if (left < 0) return 0;
    left = -1;
    return num * part / 4;
}

static int32_t erase(void *self, uint8_t *at, uint32_t num) {
    (void)self;
    memset(at, 0xff, share(num));
    return 0;
}

static int32_t write(void *self, uint8_t *at, const uint8_t *from, uint32_t num) {
    uint32_t i, n = share(num);
    (void)self;
    for (i = 0; i < n; i++) at[i] &= from[i];
    return 0;
}

static mh_port port_of(void) {
    static uint8_t arena[MAX];
    mh_port port;
    memset(&port, 0, sizeof port);
    port.flash_erase = erase;
    port.flash_write = write;
    port.arena = arena;
    port.arena_bytes = MAX;
    port.slot[0] = flash[0];
    port.slot[1] = flash[1];
    port.slot_bytes = MAX;
    return port;
}

void power_fresh(void) { memset(flash, 0xff, sizeof flash); }

/* Boots and writes a blob. Gives the number of things that the flash did whole, or -1 if not all were done. */
int32_t power_update(const uint8_t *blob, uint32_t bytes, int32_t until, uint32_t quarters) {
    mh_port port = port_of();
    mh_slots slots;
    uint32_t at, num;
    int failed;
    left = until;
    part = quarters;
    mh_slots_init(&slots, &port);
    failed = mh_slots_begin(&slots, bytes) != MH_OK;
    for (at = 0; !failed && at < bytes; at += num) {
        num = bytes - at < 256 ? bytes - at : 256;
        failed = mh_slots_put(&slots, at, blob + at, num) != MH_OK;
    }
    if (!failed) failed = mh_slots_commit(&slots) != MH_OK;
    return failed || left < 0 ? -1 : until - left;
}

/* Boots: whether the blob in use is this one. */
int32_t power_found(const uint8_t *blob, uint32_t bytes) {
    mh_port port = port_of();
    mh_slots slots;
    mh_slots_init(&slots, &port);
    return mh_slots_blob(&slots) != 0 && memcmp(mh_slots_blob(&slots), blob, bytes) == 0;
}

static int32_t erase_pages(void *self, uint8_t *at, uint32_t num) {
    (void)self;
    if ((uint32_t)(at - flash[0]) % MH_FLASH_PAGE || num % MH_FLASH_PAGE) return -1;
    memset(at, 0xff, num);
    return 0;
}

static int put_rows(mh_store *s, int set, uint32_t num, uint8_t what) {
    uint8_t value[7];
    uint32_t i;
    for (i = 0; i < num; i++) {
        memset(value, what + (int)i % 100, sizeof value);
        if (mh_store_put(s, set, s->count[set] + i, 0, value, sizeof value)) return 0;
        if (mh_store_put_label(s, set, s->count[set] + i, (int32_t)i)) return 0;
    }
    s->count[set] += num;
    return 1;
}

static int has_rows(const mh_store *s, int set, uint32_t num, uint8_t what) {
    uint32_t i, k;
    if (s->count[set] != num) return 0;
    for (i = 0; i < num; i++) {
        for (k = 0; k < 7; k++)
            if (mh_store_row(s, set, i)[k] != (uint8_t)(what + i % 100)) return 0;
        if (mh_store_label(s, set, i) != (int32_t)i) return 0;
    }
    return 1;
}

/* Rows of 7 bytes on a flash that is erased in pages: a set begins anew inside a page, and the one before it stays.
   0, or the line at which it didn't. */
int32_t power_rows(void) {
    static uint8_t spare[MH_FLASH_PAGE];
    mh_port port = port_of();
    mh_store s;
    uint32_t round;
    left = 0x7fffffff;
    port.flash_erase = erase_pages;
    port.store = flash[0];
    port.store_bytes = MAX;
    mh_store_init(&s, &port, 7);
    memset(flash, 0x5a, sizeof flash);
    if (mh_store_begin(&s, MH_TRAIN, spare, sizeof spare) || !put_rows(&s, MH_TRAIN, 500, 1)) return __LINE__;
    for (round = 0; round < 5; round++) {
        if (mh_store_begin(&s, MH_TEST, spare, sizeof spare)) return __LINE__;
        if (!put_rows(&s, MH_TEST, 100 + 300 * round, (uint8_t)(round + 20)) || !put_rows(&s, MH_ADAPT, 9, 60)) return __LINE__;
        if (!has_rows(&s, MH_TRAIN, 500, 1) || !has_rows(&s, MH_ADAPT, 9, 60)) return __LINE__;
        if (!has_rows(&s, MH_TEST, 100 + 300 * round, (uint8_t)(round + 20))) return __LINE__;
    }
    if (mh_store_begin(&s, MH_TEST, spare, 16) != MH_ERROR_FLASH) return __LINE__;
    if (mh_store_fits(&s, MH_TEST, (MAX - 500 * s.row_bytes) / s.row_bytes)) return __LINE__;
    if (mh_store_fits(&s, MH_TEST, (MAX - 500 * s.row_bytes) / s.row_bytes + 1) != MH_ERROR_STORE_FULL) return __LINE__;
    return 0;
}
