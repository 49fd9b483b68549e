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
