#include "frames.h"

#include "vector.h"

#include <math.h>

#define CRC_BYTES 4

static void write_crc(uint8_t *to, uint32_t sum)
{
    for (int n = 0; n < CRC_BYTES; n++)
        to[n] = (uint8_t)(sum >> 8 * n);
}

static void write_frame(const mk_frames *f, int64_t d)
{
    uint8_t *data = f->data + d * f->step;
    int64_t at = 0;
    for (int64_t i = 0; i < f->num_fields; i++) {
        const mk_field *field = &f->fields[i];
        memcpy(data + at, f->pattern + at, (size_t)(field->place - at));
        memcpy(data + field->place, field->from + d * field->size, (size_t)field->size);
        at = field->place + field->size;
    }
    memcpy(data + at, f->pattern + at, (size_t)(f->size - CRC_BYTES - at));
    write_crc(data + f->size - CRC_BYTES, mk_crc32(data, f->size - CRC_BYTES));
}

/* A number isn't finite where all bits of its exponent are set. */
static int are_finite(const uint8_t *data, int64_t size, int64_t kind)
{
    const vi exponent = (vi)all(INFINITY);
    vi odd = {0};
    int64_t n = 0;
    for (; kind == MK_FLOATS && n + (int64_t)sizeof odd <= size; n += (int64_t)sizeof odd) {
        vi bits;
        memcpy(&bits, data + n, sizeof bits); /* a field may lie at any byte */
        odd |= (bits & exponent) == exponent;
    }
    int found = 0;
    for (int lane = 0; lane < MK_LANES; lane++)
        found |= odd[lane];
    for (; kind == MK_FLOATS && n < size; n += 4) {
        float one;
        memcpy(&one, data + n, sizeof one);
        found |= !isfinite(one);
    }
    for (; kind == MK_DOUBLES && n < size; n += 8) {
        double one;
        memcpy(&one, data + n, sizeof one);
        found |= !isfinite(one);
    }
    return !found;
}

int mk_frame_is_sound(const mk_frames *f, int64_t d)
{
    const uint8_t *data = f->data + d * f->step;
    uint8_t sum[CRC_BYTES];
    int64_t at = 0;
    write_crc(sum, mk_crc32(data, f->size - CRC_BYTES));
    int sound = !memcmp(sum, data + f->size - CRC_BYTES, CRC_BYTES);
    for (int64_t i = 0; i < f->num_fields; i++) {
        const mk_field *field = &f->fields[i];
        sound &= !memcmp(data + at, f->pattern + at, (size_t)(field->place - at));
        sound &= !memcmp(data + field->place, field->from + d * field->size, (size_t)field->size);
        sound &= are_finite(data + field->place, field->size, field->kind);
        at = field->place + field->size;
    }
    return sound && !memcmp(data + at, f->pattern + at, (size_t)(f->size - CRC_BYTES - at));
}

void mk_frames_through(const mk_frames *f)
{
    for (int64_t d = 0; d < f->num; d++) {
        write_frame(f, d);
        f->sound[d] = (uint8_t)mk_frame_is_sound(f, d);
    }
}
