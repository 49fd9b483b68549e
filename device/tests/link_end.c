/* The device's end of a link between two buffers, for tests through ctypes: what the device reads comes from mh_end_input,
   what it writes is fetched with mh_end_output. An empty input is a closed stream. */
#include <stdlib.h>
#include <string.h>

#include "mh_aead.h"
#include "mh_cobs.h"
#include "mh_crc32.h"
#include "mh_frame.h"
#include "mh_link.h"
#include "mh_rng.h"

typedef struct {
    mh_link link; /* first, so that a pointer to this is one to the link */
    mh_port port;
    uint8_t key[32], *in, *out;
    uint32_t in_at, in_end, out_end, state, step; /* step: bytes given at a time */
} mh_end;

static int32_t read_some(void *self, uint8_t *to, uint32_t max) {
    mh_end *e = self;
    uint32_t num = e->in_end - e->in_at;
    if (num > max) num = max;
    if (e->step && num > e->step) num = e->step;
    if (num) memcpy(to, e->in + e->in_at, num);
    e->in_at += num;
    return (int32_t)num;
}

static int32_t write_all(void *self, const uint8_t *from, uint32_t num) {
    mh_end *e = self;
    e->out = realloc(e->out, e->out_end + num);
    memcpy(e->out + e->out_end, from, num);
    e->out_end += num;
    return 0;
}

static uint32_t next_random(void *self) {
    mh_end *e = self;
    return e->state = e->state * 1664525u + 1013904223u;
}

void *mh_end_new(const uint8_t *key, uint32_t seed, uint32_t step) {
    mh_end *e = calloc(1, sizeof *e);
    e->state = seed;
    e->step = step;
    e->port.self = e;
    e->port.read = read_some;
    e->port.write = write_all;
    e->port.random = next_random;
    if (key) {
        memcpy(e->key, key, 32);
        e->port.key = e->key;
    }
    mh_link_init(&e->link, &e->port);
    return e;
}

void mh_end_free(mh_end *e) {
    free(e->in);
    free(e->out);
    free(e);
}

void mh_end_input(mh_end *e, const uint8_t *from, uint32_t num) {
    memmove(e->in, e->in + e->in_at, e->in_end - e->in_at);
    e->in_end -= e->in_at;
    e->in_at = 0;
    e->in = realloc(e->in, e->in_end + num + 1);
    memcpy(e->in + e->in_end, from, num);
    e->in_end += num;
}

uint32_t mh_end_output(mh_end *e, uint8_t *to, uint32_t max) {
    uint32_t num = e->out_end < max ? e->out_end : max;
    if (num) memcpy(to, e->out, num);
    e->out_end -= num;
    memmove(e->out, e->out + num, e->out_end);
    return num;
}

uint32_t mh_end_refused(const mh_end *e, uint32_t why) { return e->link.refused[why]; }

void mh_end_sizes(uint32_t *sizes) {
    sizes[0] = sizeof(mh_link), sizes[1] = sizeof(mh_reader), sizes[2] = sizeof(mh_writer), sizes[3] = sizeof(mh_setting);
    sizes[4] = sizeof(mh_tensor), sizes[5] = MH_NUM_SETTINGS, sizes[6] = MH_NUM_REFUSALS, sizes[7] = MH_FRAME_OPS;
}
