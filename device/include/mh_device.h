/* A device: it takes one message at a time from its link, does the op (src/midhaul/ops.py has the law) and replies.

   Everything lies in one static mh_device, about 1.5 KB, most of it the link's packet buffer, and in the port's arena,
   slots and store. No message needs memory of its own size: weights stream into their places in the arena, rows into the
   store, a blob into its slot, activations out as they are made.

   Parameters that come with a message overwrite those in the arena and serve that op alone, so such a tensor is borrowed
   until a LOAD, or a FIT that keeps it, gives the device one of its own; an op that needs a borrowed tensor is refused.
   What a restart leaves is the blob: weights begin at its initial values, and the rows are to be pushed again (the metric
   boots of HELLO is another number after each start).

   With MH_INFER_ONLY the device refuses FIT, ADAPT and BACKWARD and nothing that trains is compiled. */
#ifndef MH_DEVICE_H
#define MH_DEVICE_H

#include <stdint.h>

#include "mh_link.h"
#include "mh_model.h"
#include "mh_port.h"

#define MH_PROTOCOL 1

enum mh_set { MH_TRAIN = 0, MH_TEST = 1, MH_ADAPT = 2, MH_NUM_SETS = 3 };

/* The rows that a device holds, one after the other in the order of the sets: the stored value, an int16 label, and up to
   the next multiple of 4 erased bytes. */
typedef struct {
    const mh_port *port;
    uint32_t value_bytes, row_bytes; /* 0 without a model */
    uint32_t count[MH_NUM_SETS];
} mh_store;

/* Two places for a blob. The last 16 bytes of each are its commit record: a sequence number, its complement, the blob's
   bytes, and a word that is written last. */
typedef struct {
    const mh_port *port;
    int active;        /* the slot in use, or -1 */
    uint32_t sequence; /* of it */
    uint32_t total, at; /* of the blob that is coming: its bytes, and how many are in. total 0: none is */
} mh_slots;

/* The rows that a FORWARD took and a BACKWARD will go back through. */
typedef struct {
    uint8_t is_open;
    uint64_t seed;
    uint32_t round, device, use;
    uint32_t first, num; /* rows first .. first + num - 1 of the order */
    uint8_t is_shuffled;
} mh_batch;

enum mh_velocity { MH_VELOCITY_ZERO = 0, MH_VELOCITY_OWN = 1, MH_VELOCITY_LOST = 2 };

typedef struct mh_device {
    const mh_port *port;
    mh_link link;
    mh_model model;
    uint8_t has_model;
    uint8_t velocity; /* enum mh_velocity: what BACKWARD finds */
    mh_slots slots;
    mh_store store;
    mh_batch batch;
    uint64_t seed, ticks;
    uint32_t boots, frames_refused;
    const uint8_t *owed_by; /* the slice whose coded update owes `owed` numbers, behind the blob's arena; see mh_owe */
    uint32_t owed;
    const uint8_t *base_of; /* the slice whose starting values are what it was last sent; NULL: none is */
    uint32_t borrowed[MH_MAX_PARAMS / 32], came[MH_MAX_PARAMS / 32]; /* a bit a parameter; came: with this message */
} mh_device;

/* Finds the newest whole blob in the slots and opens the link. */
void mh_device_init(mh_device *d, const mh_port *port);
/* Takes one message and replies. 0, or < 0 when the stream closed. */
int mh_device_serve(mh_device *d);
/* Serves until the stream closes. */
void mh_device_run(mh_device *d);

#endif
