#include "mh_frame.h"

#include <string.h>

#include "mh_crc32.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames are little-endian, and so must be the processor"
#endif

static const uint8_t ITEM_BYTES[8] = {4, 2, 2, 1, 1, 2, 4, 8};

static uint16_t load_u16(const uint8_t *from) { return (uint16_t)(from[0] | from[1] << 8); }

static uint32_t load_u32(const uint8_t *from) { return load_u16(from) | (uint32_t)load_u16(from + 2) << 16; }

static int is_finite_f32(uint32_t bits) { return (bits & 0x7f800000u) != 0x7f800000u; }

static int is_finite_f64(const uint8_t *from) { return (load_u32(from + 4) & 0x7ff00000u) != 0x7ff00000u; }

static int fail(mh_reader *r, int status) {
    if (!r->status) r->status = status;
    return r->status;
}

/* The next num bytes of the frame; `to` may be NULL. */
static int take(mh_reader *r, void *to, uint32_t num) {
    uint8_t skipped[32];
    if (r->status) return r->status;
    if (num > r->left) return fail(r, MH_FRAME_LENGTH);
    while (num) {
        uint32_t part = to || num < sizeof skipped ? num : (uint32_t)sizeof skipped;
        uint8_t *place = to ? to : skipped;
        int status = mh_link_read(r->link, place, part);
        if (status) return fail(r, status == MH_LINK_ENDED ? MH_FRAME_LENGTH : status);
        r->crc = mh_crc32(r->crc, place, part);
        r->left -= part;
        num -= part;
    }
    return 0;
}

int mh_frame_begin(mh_reader *r, mh_link *l) {
    uint8_t head[MH_FRAME_HEAD];
    memset(r, 0, sizeof *r);
    r->link = l;
    r->left = MH_FRAME_HEAD;
    if (take(r, head, MH_FRAME_HEAD)) return r->status;
    if (head[0] != 'M' || head[1] != 'H' || head[2] != 1) return fail(r, MH_FRAME_MAGIC);
    r->total = load_u32(head + 8);
    if (r->total < MH_FRAME_OVERHEAD) return fail(r, MH_FRAME_LENGTH);
    r->left = r->total - MH_FRAME_OVERHEAD;
    r->op = head[3];
    if (r->op < 1 || r->op > MH_FRAME_OPS || head[4] & 1) return fail(r, MH_FRAME_OP);
    if (head[4] || head[22] || head[23]) return fail(r, MH_FRAME_RESERVED);
    r->num_settings = head[5];
    r->num_tensors = load_u16(head + 6);
    r->round = load_u32(head + 12);
    r->device = load_u32(head + 16);
    r->num_metrics = load_u16(head + 20);
    uint32_t low = load_u32(head + 24), high = load_u32(head + 28);
    if (!is_finite_f64(head + 24) || (high > 0x80000000u || (high == 0x80000000u && low))) /* minus zero is no less */
        return fail(r, MH_FRAME_NUMBER);
    memcpy(&r->weight, head + 24, 8);
    return 0;
}

static int has_zero(const mh_setting *s) {
    for (int i = 0; i < s->text_bytes; i++)
        if (s->text[i] == 0) return 1;
    return 0;
}

int mh_frame_setting(mh_reader *r, mh_setting *s) {
    uint8_t part[8];
    if (!r->status && !r->num_settings) fail(r, MH_FRAME_ORDER);
    if (take(r, part, 2)) return r->status;
    r->num_settings--;
    memset(s, 0, sizeof *s);
    s->number = part[0];
    s->type = part[1];
    if (s->number >= MH_NUM_SETTINGS || r->settings_seen >> s->number & 1) return fail(r, MH_FRAME_SETTING);
    r->settings_seen |= (uint64_t)1 << s->number;
    if (s->type == MH_INT) {
        if (take(r, part, 4)) return r->status;
        memcpy(&s->i32, part, 4);
    } else if (s->type == MH_FLOAT) {
        if (take(r, part, 8)) return r->status;
        if (!is_finite_f64(part)) return fail(r, MH_FRAME_SETTING);
        memcpy(&s->f64, part, 8);
    } else if (s->type == MH_TEXT) {
        if (take(r, part, 2)) return r->status;
        if (load_u16(part) > MH_FRAME_TEXT) return fail(r, MH_FRAME_SETTING);
        s->text_bytes = part[0];
        if (take(r, s->text, s->text_bytes) == 0 && has_zero(s)) fail(r, MH_FRAME_SETTING);
    } else {
        fail(r, MH_FRAME_SETTING);
    }
    return r->status;
}

/* A vector of which the code follows. */
static int coded(mh_reader *r, mh_tensor *t) {
    uint8_t part[4];
    int i;
    if (t->ndim != 1) return fail(r, MH_FRAME_SHAPE);
    for (i = 0; i < MH_FRAME_DIMS; i++) t->shape[i] = 1;
    if (take(r, part, 4)) return r->status;
    t->shape[0] = t->elements = load_u32(part);
    if (take(r, part, 4)) return r->status;
    if (load_u32(part) > r->left) return fail(r, MH_FRAME_LENGTH);
    r->data = load_u32(part);
    return 0;
}

int mh_frame_tensor(mh_reader *r, mh_tensor *t) {
    uint8_t part[6];
    mh_frame_bytes(r, NULL, r->data);
    if (!r->status && (r->num_settings || !r->num_tensors)) fail(r, MH_FRAME_ORDER);
    if (take(r, part, 6)) return r->status;
    r->num_tensors--;
    t->id = load_u32(part);
    t->dtype = part[4];
    t->ndim = part[5];
    if (t->dtype > MH_WIRE_CODED || t->ndim > MH_FRAME_DIMS) return fail(r, MH_FRAME_SHAPE);
    if (t->dtype == MH_WIRE_CODED) return coded(r, t);
    /* A dimension of 0 must not let the others be anything: their product is bounded as if it were 1. */
    uint64_t bytes = ITEM_BYTES[t->dtype];
    int is_empty = 0;
    for (int i = 0; i < MH_FRAME_DIMS; i++) {
        t->shape[i] = 1;
        if (i >= t->ndim) continue;
        if (take(r, part, 4)) return r->status;
        t->shape[i] = load_u32(part);
        if (t->shape[i] == 0)
            is_empty = 1;
        else
            bytes *= t->shape[i];
        if (bytes > 0xffffffffu) return fail(r, MH_FRAME_SHAPE);
    }
    if (is_empty) bytes = 0;
    if (bytes > r->left) return fail(r, MH_FRAME_LENGTH);
    r->data = (uint32_t)bytes;
    t->elements = (uint32_t)bytes / ITEM_BYTES[t->dtype];
    return 0;
}

int mh_frame_bytes(mh_reader *r, void *to, uint32_t num) {
    if (!r->status && num > r->data) fail(r, MH_FRAME_ORDER);
    if (take(r, to, num)) return r->status;
    r->data -= num;
    return 0;
}

static uint32_t f32_of_f16(uint32_t half) {
    uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, rest = half & 0x3ffu;
    if (exponent == 31) return sign | 0x7f800000u | rest << 13;
    if (exponent == 0) {
        if (rest == 0) return sign;
        for (exponent = 1; !(rest & 0x400u); exponent--) rest <<= 1; /* below the normal ones: wraps, and comes back */
        rest &= 0x3ffu;
    }
    return sign | (exponent + 112u) << 23 | rest << 13;
}

/* Element i of items of a dtype, as the bits of a float. */
static uint32_t f32_bits(const uint8_t *from, uint8_t dtype) {
    float value;
    uint32_t bits;
    if (dtype == MH_WIRE_F32) return load_u32(from);
    if (dtype == MH_WIRE_F16) return f32_of_f16(load_u16(from));
    if (dtype == MH_WIRE_BF16) return (uint32_t)load_u16(from) << 16;
    if (dtype == MH_WIRE_I8)
        value = (float)(int8_t)from[0];
    else if (dtype == MH_WIRE_U8)
        value = (float)from[0];
    else if (dtype == MH_WIRE_I16)
        value = (float)(int16_t)load_u16(from);
    else if (dtype == MH_WIRE_I32)
        value = (float)(int32_t)load_u32(from);
    else
        value = (float)(int64_t)((uint64_t)load_u32(from) | (uint64_t)load_u32(from + 4) << 32);
    memcpy(&bits, &value, 4);
    return bits;
}

/* Reads n items of at most 4 bytes into the end of `to` and makes them 4 bytes each, from the front: what is written never
   passes what is still to be read. Items of 8 bytes go through a buffer. */
static int convert(mh_reader *r, const mh_tensor *t, void *to, uint32_t n, int to_float) {
    uint8_t *out = to, eight[64];
    uint32_t item = t->dtype < MH_WIRE_CODED ? ITEM_BYTES[t->dtype] : 1;
    if (r->status) return r->status;
    if (t->dtype == MH_WIRE_CODED) return fail(r, MH_FRAME_SHAPE);
    if (n > r->data / item) return fail(r, MH_FRAME_ORDER);
    while (n) {
        uint32_t part = item < 8 ? n : n < 8 ? n : 8;
        uint8_t *from = item < 8 ? out + part * (4 - item) : eight;
        if (mh_frame_bytes(r, from, part * item)) return r->status;
        for (uint32_t i = 0; i < part; i++, from += item, out += 4) {
            uint32_t bits;
            if (to_float) {
                bits = f32_bits(from, t->dtype);
                if (!is_finite_f32(bits)) return fail(r, MH_FRAME_NUMBER);
            } else if (t->dtype == MH_WIRE_I8) {
                bits = (uint32_t)(int8_t)from[0];
            } else if (t->dtype == MH_WIRE_U8) {
                bits = from[0];
            } else if (t->dtype == MH_WIRE_I16) {
                bits = (uint32_t)(int16_t)load_u16(from);
            } else {
                bits = load_u32(from);
                if (item == 8 && load_u32(from + 4) != (bits >> 31 ? 0xffffffffu : 0u)) return fail(r, MH_FRAME_NUMBER);
            }
            memcpy(out, &bits, 4);
        }
        n -= part;
    }
    return 0;
}

int mh_frame_f32(mh_reader *r, const mh_tensor *t, float *to, uint32_t n) { return convert(r, t, to, n, 1); }

int mh_frame_i32(mh_reader *r, const mh_tensor *t, int32_t *to, uint32_t n) {
    if (t->dtype < MH_WIRE_I8) return fail(r, MH_FRAME_NUMBER);
    return convert(r, t, to, n, 0);
}

int mh_frame_done(mh_reader *r) {
    uint8_t part[MH_FRAME_METRIC];
    mh_frame_bytes(r, NULL, r->data);
    if (!r->status && (r->num_settings || r->num_tensors)) fail(r, MH_FRAME_ORDER);
    for (; !r->status && r->num_metrics; r->num_metrics--)
        if (take(r, part, MH_FRAME_METRIC) == 0 && !is_finite_f64(part + 4)) fail(r, MH_FRAME_NUMBER);
    if (!r->status && r->left) fail(r, MH_FRAME_LENGTH);
    if (r->status) return r->status;
    int status = mh_link_read(r->link, part, MH_FRAME_CRC);
    if (status) return fail(r, status == MH_LINK_ENDED ? MH_FRAME_LENGTH : status);
    if (load_u32(part) != r->crc) return fail(r, MH_FRAME_SUM);
    return mh_link_at_end(r->link) ? 0 : fail(r, MH_FRAME_LENGTH);
}

static int put(mh_writer *w, const void *from, uint32_t num) {
    if (!w->status && num > w->left) w->status = MH_FRAME_LENGTH;
    if (!w->status) w->status = mh_link_write(w->link, from, num);
    if (w->status) return w->status;
    w->crc = mh_crc32(w->crc, from, num);
    w->left -= num;
    return 0;
}

int mh_frame_reply(mh_writer *w, mh_link *l, uint8_t op, uint32_t round, uint32_t device, uint16_t num_tensors,
                   uint16_t num_metrics, double weight, uint32_t total_bytes) {
    uint8_t head[MH_FRAME_HEAD] = {'M', 'H', 1, 0, 1};
    w->link = l;
    w->crc = 0;
    w->left = total_bytes - MH_FRAME_CRC;
    w->status = total_bytes < MH_FRAME_OVERHEAD ? MH_FRAME_LENGTH : mh_link_begin(l);
    head[3] = op;
    memcpy(head + 6, &num_tensors, 2);
    memcpy(head + 8, &total_bytes, 4);
    memcpy(head + 12, &round, 4);
    memcpy(head + 16, &device, 4);
    memcpy(head + 20, &num_metrics, 2);
    memcpy(head + 24, &weight, 8);
    return put(w, head, MH_FRAME_HEAD);
}

int mh_frame_put_tensor(mh_writer *w, uint32_t id, uint8_t dtype, uint8_t ndim, const uint32_t *shape) {
    uint8_t head[6];
    memcpy(head, &id, 4);
    head[4] = dtype;
    head[5] = ndim;
    put(w, head, 6);
    return put(w, shape, 4u * ndim);
}

int mh_frame_put(mh_writer *w, const void *from, uint32_t num) { return put(w, from, num); }

int mh_frame_put_metric(mh_writer *w, uint32_t id, double value) {
    uint8_t metric[MH_FRAME_METRIC];
    memcpy(metric, &id, 4);
    memcpy(metric + 4, &value, 8);
    return put(w, metric, MH_FRAME_METRIC);
}

int mh_frame_end(mh_writer *w) {
    uint32_t crc = w->crc;
    if (!w->status && w->left) w->status = MH_FRAME_LENGTH;
    if (!w->status) w->status = mh_link_write(w->link, &crc, 4);
    if (!w->status) w->status = mh_link_end(w->link);
    return w->status;
}
