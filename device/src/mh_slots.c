/* Blobs in flash: written to the slot that isn't in use, and in use from the moment its last word is written. */
#include <string.h>

#include "mh_inner.h"

#define COMMITTED 0x54494d43u /* "CMIT" */

typedef struct {
    uint32_t sequence, complement, bytes, committed;
} record;

/* Writes what isn't there yet. A message that comes again finds its bytes in place. */
enum mh_error mh_flash_put(const mh_port *port, uint8_t *at, const uint8_t *from, uint32_t num) {
    uint32_t i;
    int is_there = 1;
    for (i = 0; i < num; i++) {
        is_there &= at[i] == from[i];
        if ((at[i] & from[i]) != from[i]) return MH_ERROR_FLASH; /* a write can't set a bit */
    }
    if (is_there) return MH_OK;
    if (port->flash_write(port->self, at, from, num) < 0) return MH_ERROR_FLASH;
    for (i = 0; i < num; i++)
        if (at[i] != from[i]) return MH_ERROR_FLASH;
    return MH_OK;
}

static uint8_t *record_of(const mh_slots *s, int slot) { return s->port->slot[slot] + s->port->slot_bytes - sizeof(record); }

static enum mh_error check(const mh_slots *s, int slot) {
    return mh_model_check(s->port->slot[slot], s->port->slot_bytes - (uint32_t)sizeof(record), s->port->arena_bytes);
}

void mh_slots_init(mh_slots *s, const mh_port *port) {
    int slot;
    s->port = port;
    s->active = -1;
    s->sequence = s->total = s->at = 0;
    if (port->slot_bytes < sizeof(record) + sizeof(mh_blob) || port->slot_bytes % 4 != 0) return;
    for (slot = 0; slot < 2; slot++) {
        record r;
        if (!port->slot[slot]) continue;
        memcpy(&r, record_of(s, slot), sizeof r);
        if (r.committed != COMMITTED || r.complement != ~r.sequence || check(s, slot) != MH_OK) continue;
        /* Sequence numbers wrap: the newer one is less than half the circle ahead. */
        if (s->active >= 0 && (int32_t)(r.sequence - s->sequence) < 0) continue;
        s->active = slot;
        s->sequence = r.sequence;
    }
}

const uint8_t *mh_slots_blob(const mh_slots *s) { return s->active < 0 ? 0 : s->port->slot[s->active]; }

static int target(const mh_slots *s) { return s->active == 0 ? 1 : 0; }

enum mh_error mh_slots_begin(mh_slots *s, uint32_t total) {
    uint8_t *slot = s->port->slot[target(s)];
    s->total = s->at = 0;
    if (!slot || total < sizeof(mh_blob) || total % 4 != 0 || s->port->slot_bytes < sizeof(record) ||
        total > s->port->slot_bytes - sizeof(record))
        return MH_ERROR_BLOB_SIZE;
    if (s->port->flash_erase(s->port->self, slot, s->port->slot_bytes) < 0) return MH_ERROR_FLASH;
    s->total = total;
    return MH_OK;
}

enum mh_error mh_slots_put(mh_slots *s, uint32_t at, const uint8_t *from, uint32_t num) {
    if (s->total == 0 || at > s->total || num > s->total - at || at % 4 != 0 || num % 4 != 0) return MH_ERROR_BLOB_ORDER;
    return mh_flash_put(s->port, s->port->slot[target(s)] + at, from, num);
}

enum mh_error mh_slots_commit(mh_slots *s) {
    int slot = target(s);
    const mh_blob *head = (const void *)s->port->slot[slot];
    enum mh_error error = check(s, slot);
    record r;
    if (error == MH_OK && head->total_bytes != s->total) error = MH_ERROR_BLOB;
    s->total = s->at = 0;
    if (error != MH_OK) return error;
    r.sequence = s->sequence + 1;
    r.complement = ~r.sequence;
    r.bytes = head->total_bytes;
    r.committed = COMMITTED;
    error = mh_flash_put(s->port, record_of(s, slot), (const void *)&r, 12);
    if (error == MH_OK) error = mh_flash_put(s->port, record_of(s, slot) + 12, (const void *)&r.committed, 4);
    if (error != MH_OK) return error;
    s->active = slot;
    s->sequence = r.sequence;
    return MH_OK;
}
