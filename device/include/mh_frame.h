/* Frames (docs/wire.md) read from and written to the link as they come, so that none needs a buffer of its size; the twin
   is src/midhaul/link/frame.py.

   Reading: mh_link_open, mh_frame_begin, then settings, tensors and metrics in this order, mh_frame_done, mh_link_close.
   Each call refuses what isn't as wire.md says; after a refusal every further call gives the same refusal. What was read
   before mh_frame_done is from the right sender (the link's seals), but the sender may have got a count wrong: nothing
   may be kept before mh_frame_done gave 0. Duplicate ids of tensors are the caller's to notice; of settings they are
   refused here. Texts aren't checked to be UTF-8: they are compared, never shown.

   Writing: all sizes are known before, so mh_frame_reply takes the number of bytes and mh_frame_end holds it to that. */
#ifndef MH_FRAME_H
#define MH_FRAME_H

#include <stdint.h>

#include "mh_link.h"

#define MH_FRAME_HEAD 32
#define MH_FRAME_CRC 4
#define MH_FRAME_OVERHEAD (MH_FRAME_HEAD + MH_FRAME_CRC)
#define MH_FRAME_METRIC 12
#define MH_FRAME_TENSOR(ndim) (6u + 4u * (uint32_t)(ndim)) /* before a tensor's data */
#define MH_FRAME_TEXT 32                                   /* a longer text of a setting is refused */
#define MH_FRAME_DIMS 8
#define MH_FRAME_OPS 11

/* As message.SETTINGS. */
enum mh_setting_number {
    MH_SET_LR, MH_SET_MOMENTUM, MH_SET_WEIGHT_DECAY, MH_SET_BATCH, MH_SET_EPOCHS, MH_SET_STEPS, MH_SET_LOSS,
    MH_SET_PROXIMAL_MU, MH_SET_TEMPERATURE, MH_SET_SOFT_WEIGHT, MH_SET_TRAIN, MH_SET_SEND, MH_SET_ROWS, MH_SET_STEP,
    MH_SET_WHAT, MH_SET_CLIP, MH_SET_EPOCH, MH_SET_SCALE, MH_SET_SEED_LOW, MH_SET_SEED_HIGH,
    /* From here on a device refuses them: ops that only simulated devices do yet. */
    MH_SET_RULE, MH_SET_INNER_LR, MH_SET_INNER_STEPS, MH_SET_INNER_TRAIN, MH_SET_NOISE, MH_SET_ORDER, MH_SET_NOPEEK,
    MH_SET_SUPPORT, MH_SET_SEEDS,
    /* How a device codes its reply: see mh_code.h. */
    MH_SET_CODE, MH_SET_SHARE, MH_SET_STREAM,
    MH_NUM_SETTINGS
};

enum mh_setting_type { MH_INT = 0, MH_FLOAT = 1, MH_TEXT = 2 };

/* Numbers of dtypes on the wire, as frame._DTYPES. */
enum mh_wire {
    MH_WIRE_F32, MH_WIRE_F16, MH_WIRE_BF16, MH_WIRE_I8, MH_WIRE_U8, MH_WIRE_I16, MH_WIRE_I32, MH_WIRE_I64,
    MH_WIRE_CODED /* a vector, whose data are so many bytes of its code; mh_frame_bytes reads them */
};

/* What a reader found wrong. The link's own statuses are above -10. */
enum mh_frame_status {
    MH_FRAME_MAGIC = -10,   /* not a frame, or of another version */
    MH_FRAME_LENGTH = -11,  /* too short, cut, or counts and length disagree */
    MH_FRAME_SUM = -12,     /* the CRC-32 is wrong */
    MH_FRAME_OP = -13,      /* no such op, or a reply */
    MH_FRAME_RESERVED = -14,
    MH_FRAME_SETTING = -15, /* unknown, twice, of an unknown type, a text too long or with a zero byte, not finite */
    MH_FRAME_SHAPE = -16,   /* an unknown dtype, too many dimensions, or larger than the frame */
    MH_FRAME_NUMBER = -17,  /* a weight, element or metric that isn't finite, or doesn't fit what was asked for */
    MH_FRAME_ORDER = -18    /* asked for what isn't next, or for more elements than there are */
};

typedef struct {
    uint8_t number, type; /* enum mh_setting_number, enum mh_setting_type */
    uint8_t text_bytes;
    int32_t i32;
    double f64;
    char text[MH_FRAME_TEXT]; /* not terminated */
} mh_setting;

typedef struct {
    uint32_t id; /* CRC-32 of the name */
    uint8_t dtype, ndim;
    uint32_t shape[MH_FRAME_DIMS]; /* 1 behind the last */
    uint32_t elements;
} mh_tensor;

typedef struct {
    mh_link *link;
    uint32_t crc;
    uint32_t left;    /* bytes of the frame that weren't read, its CRC not counted */
    uint32_t data;    /* of them, bytes of the tensor that is being read */
    uint64_t settings_seen; /* a bit each */
    int status;       /* 0, or the first refusal */
    uint8_t op;
    uint8_t num_settings;               /* how many follow; each counts down as it is read */
    uint16_t num_tensors, num_metrics;
    uint32_t total, round, device;
    double weight;
} mh_reader;

/* Reads the head of the frame in the message that mh_link_open found. 0, or a status below 0, as all of these. */
int mh_frame_begin(mh_reader *r, mh_link *l);
int mh_frame_setting(mh_reader *r, mh_setting *s);

/* Reads the head of the next tensor; whatever is left of the one before is skipped. */
int mh_frame_tensor(mh_reader *r, mh_tensor *t);

/* The next n elements of the tensor, converted: to [n]. Floats must be finite; whole numbers become floats by rounding to
   nearest, floats never become whole numbers. */
int mh_frame_f32(mh_reader *r, const mh_tensor *t, float *to, uint32_t n);
int mh_frame_i32(mh_reader *r, const mh_tensor *t, int32_t *to, uint32_t n);

/* The next num bytes of the tensor as they are; `to` may be NULL. to: [num]. */
int mh_frame_bytes(mh_reader *r, void *to, uint32_t num);

/* Reads what is left of the last tensor, the metrics and the CRC: 0 if the frame is whole and sound. */
int mh_frame_done(mh_reader *r);

typedef struct {
    mh_link *link;
    uint32_t crc;
    uint32_t left; /* bytes that are still to be put, the CRC not counted */
    int status;
} mh_writer;

/* Begins a reply of total_bytes, which is MH_FRAME_OVERHEAD and the bytes of its tensors and metrics. w->link is `l`. */
int mh_frame_reply(mh_writer *w, mh_link *l, uint8_t op, uint32_t round, uint32_t device, uint16_t num_tensors,
                   uint16_t num_metrics, double weight, uint32_t total_bytes);
int mh_frame_put_tensor(mh_writer *w, uint32_t id, uint8_t dtype, uint8_t ndim, const uint32_t *shape);
int mh_frame_put(mh_writer *w, const void *from, uint32_t num); /* the data of a tensor, little-endian */
int mh_frame_put_metric(mh_writer *w, uint32_t id, double value);

/* Ends it: MH_FRAME_LENGTH, and the message stays without an end, if the bytes put weren't total_bytes. */
int mh_frame_end(mh_writer *w);

#endif
