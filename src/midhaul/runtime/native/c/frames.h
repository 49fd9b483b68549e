#ifndef MK_FRAMES_H
#define MK_FRAMES_H

#include <stdint.h>

enum { MK_BYTES, MK_FLOATS, MK_DOUBLES };

/* A field that differs from frame to frame. `from` has `size` bytes a device, one behind another; `place` is where they
   are in a frame. `kind` says what numbers they are, which must be finite; MK_BYTES may be anything. */
typedef struct {
    const uint8_t *from;
    int64_t place, size, kind;
} mk_field;
_Static_assert(sizeof(mk_field) == 4 * sizeof(int64_t), "a field is made as a row of four 64-bit numbers");

/* Frames of one layout: `pattern` but for the fields, in the order of their places, and a CRC-32 in the last four bytes. */
typedef struct {
    const mk_field *fields;
    const uint8_t *pattern;
    uint8_t *data;  /* [num][size], or [size] where `step` is 0: then each frame lies where the one before it did */
    uint8_t *sound; /* [num] */
    int64_t num, size, num_fields, step;
} mk_frames;

/* Makes all tables; once, before anything else is called. */
void mk_crc_prepare(void);
uint32_t mk_crc32(const uint8_t *data, int64_t size);

/* Takes a frame apart as who gets it does: tells whether its CRC-32 is right, its bytes are those of the pattern and of the
   fields, and its numbers are finite. Who gets it then has what `from` has. */
int mk_frame_is_sound(const mk_frames *f, int64_t d);

/* Writes each frame, and says of each whether it is sound. */
void mk_frames_through(const mk_frames *f);

#endif
