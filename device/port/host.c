/* A device inside another program's process, as a shared library: Python's ctypes opens as many as it likes.

   One call takes whole messages in and gives the replies out. Devices share nothing, so threads may run one each. */
#include <stdlib.h>
#include <string.h>

#include "mh_device.h"
#include "mh_port.h"

typedef struct {
    mh_port port;
    mh_device device;
    const uint8_t *in;
    uint32_t num_in;
    uint8_t *out; /* replies; [sent, num_out) wait to be fetched */
    uint32_t num_out, max_out, sent;
    uint32_t random[4]; /* xorshift128 */
    uint8_t key[32];
    uint8_t *memory;
} mh_host;

void *mh_host_open(uint32_t arena_bytes, uint32_t slot_bytes, uint32_t store_bytes, const uint8_t *key, uint64_t seed);
int32_t mh_host_exchange(void *device, const uint8_t *in, uint32_t num_in, uint8_t *out, uint32_t max_out);
uint32_t mh_host_waiting(const void *device);
void mh_host_restart(void *device);
void mh_host_close(void *device);

static int32_t mh_host_read(void *self, uint8_t *to, uint32_t max)
{
    mh_host *h = self;
    uint32_t num = max < h->num_in ? max : h->num_in;

    if (num > 0) {
        memcpy(to, h->in, num);
        h->in += num;
        h->num_in -= num;
    }
    return (int32_t)num;
}

static int32_t mh_host_write(void *self, const uint8_t *from, uint32_t num)
{
    mh_host *h = self;

    if (num > h->max_out - h->num_out) {
        uint32_t max = h->max_out;
        uint8_t *out;
        while (max - h->num_out < num) {
            if (max > 0x3fffffffu) {
                return -1; /* a count of bytes must fit an int32_t */
            }
            max = max == 0 ? 4096 : 2 * max;
        }
        out = realloc(h->out, max);
        if (out == NULL) {
            return -1;
        }
        h->out = out;
        h->max_out = max;
    }
    memcpy(h->out + h->num_out, from, num);
    h->num_out += num;
    return 0;
}

static uint32_t mh_host_ticks(void *self)
{
    (void)self;
    return 0;
}

static uint32_t mh_host_random(void *self)
{
    mh_host *h = self;
    uint32_t t = h->random[3] ^ (h->random[3] << 11);

    h->random[3] = h->random[2];
    h->random[2] = h->random[1];
    h->random[1] = h->random[0];
    h->random[0] ^= (h->random[0] >> 19) ^ t ^ (t >> 8);
    return h->random[0];
}

static int32_t mh_host_erase(void *self, uint8_t *at, uint32_t num)
{
    (void)self;
    memset(at, 0xff, num);
    return 0;
}

static int32_t mh_host_program(void *self, uint8_t *at, const uint8_t *from, uint32_t num)
{
    (void)self;
    while (num-- > 0) {
        *at++ &= *from++;
    }
    return 0;
}

static uint32_t mh_host_stack(void *self)
{
    (void)self;
    return 0;
}

static size_t mh_host_round(size_t bytes)
{
    return (bytes + 15u) & ~(size_t)15u;
}

/* Gives a device whose flash is erased, or NULL where there isn't the memory. `key` is 32 bytes, or NULL: unsealed. */
void *mh_host_open(uint32_t arena_bytes, uint32_t slot_bytes, uint32_t store_bytes, const uint8_t *key, uint64_t seed)
{
    size_t arena = mh_host_round(arena_bytes), slot = mh_host_round(slot_bytes), store = mh_host_round(store_bytes);
    mh_host *h = calloc(1, sizeof *h);
    uint8_t *at;

    if (h == NULL) {
        return NULL;
    }
    h->memory = malloc(arena + 2 * slot + store + 16);
    if (h->memory == NULL) {
        free(h);
        return NULL;
    }
    at = h->memory + (16 - (uintptr_t)h->memory % 16) % 16;
    h->port.self = h;
    h->port.read = mh_host_read;
    h->port.write = mh_host_write;
    h->port.ticks = mh_host_ticks;
    h->port.random = mh_host_random;
    h->port.flash_erase = mh_host_erase;
    h->port.flash_write = mh_host_program;
    h->port.stack_peak = mh_host_stack;
    h->port.arena = at;
    h->port.arena_bytes = arena_bytes & ~15u;
    h->port.slot[0] = at + arena;
    h->port.slot[1] = at + arena + slot;
    h->port.slot_bytes = slot_bytes & ~15u;
    h->port.store = at + arena + 2 * slot;
    h->port.store_bytes = store_bytes & ~15u;
    memset(at, 0, arena);
    memset(at + arena, 0xff, 2 * slot + store);
    if (key != NULL) {
        memcpy(h->key, key, sizeof h->key);
        h->port.key = h->key;
    }
    h->random[0] = (uint32_t)seed;
    h->random[1] = (uint32_t)(seed >> 32);
    h->random[2] = 0x9e3779b9u;
    h->random[3] = 0x243f6a88u;
    mh_device_init(&h->device, &h->port);
    return h;
}

/* Takes whole messages and gives how many bytes of the replies it put in `out`; what didn't fit waits for the next call,
   which may bring no input. < 0: there wasn't the memory for the replies. */
int32_t mh_host_exchange(void *device, const uint8_t *in, uint32_t num_in, uint8_t *out, uint32_t max_out)
{
    mh_host *h = device;
    uint32_t num;

    h->in = in;
    h->num_in = num_in;
    while (h->num_in > 0) {
        if (mh_device_serve(&h->device) < 0 && h->num_in > 0) {
            return -1;
        }
    }
    num = h->num_out - h->sent < max_out ? h->num_out - h->sent : max_out;
    if (num > 0) {
        memcpy(out, h->out + h->sent, num);
        h->sent += num;
    }
    if (h->sent == h->num_out) {
        h->sent = h->num_out = 0;
    }
    return (int32_t)num;
}

/* Gives the bytes of replies that wait to be fetched. */
uint32_t mh_host_waiting(const void *device)
{
    const mh_host *h = device;

    return h->num_out - h->sent;
}

/* What a reset does: flash stays, RAM is lost. */
void mh_host_restart(void *device)
{
    mh_host *h = device;

    h->sent = h->num_out = 0;
    memset(&h->device, 0, sizeof h->device);
    memset(h->port.arena, 0xa5, h->port.arena_bytes);
    mh_device_init(&h->device, &h->port);
}

void mh_host_close(void *device)
{
    mh_host *h = device;

    if (h != NULL) {
        free(h->out);
        free(h->memory);
        free(h);
    }
}
