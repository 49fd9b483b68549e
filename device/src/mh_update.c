/* Updates that travel coded: what a device is sent in place of weights, and what it answers with. */
#include "mh_inner.h"

#ifndef MH_INFER_ONLY

#include <string.h>

typedef struct {
    const mh_model *model;
    const uint8_t *sent;
} slice;

static float *part_of(const void *self, uint32_t part, uint32_t *num) {
    const slice *s = self;
    *num = s->sent[part] ? s->model->params[part].elements : 0;
    return *num ? mh_model_weight(s->model, part) : 0;
}

static mh_numbers numbers_of(const mh_device *d, const slice *s) {
    mh_numbers n;
    n.at = part_of;
    n.self = s;
    n.parts = d->model.head->num_params;
    n.owed = 0;
    return n;
}

static uint32_t elements_of(const mh_device *d, const uint8_t *sent) {
    uint32_t i, num = 0;
    for (i = 0; i < d->model.head->num_params; i++)
        if (sent[i]) num += d->model.params[i].elements;
    return num;
}

/* Behind all that a plan of the blob uses. */
static uint32_t owed_at(const mh_device *d) { return (d->model.head->arena_bytes + 15) / 16 * 16; }

int mh_coded(const mh_device *d, const mh_request *q, mh_code *c) {
    if (mh_code_read(c, q->code) || (uint32_t)q->stream >> 24) return MH_ERROR_SETTING;
    if (c->select != MH_CODE_ALL && !(q->given >> MH_SET_SHARE & 1)) return MH_ERROR_SETTING;
    c->share = q->share;
    c->seed = d->seed;
    c->round = q->round;
    c->device = q->device;
    c->use = MH_USE_CODE | (uint32_t)q->stream << 8;
    return MH_OK;
}

int mh_owe(mh_device *d, const uint8_t *sent) {
    uint32_t num = sent ? elements_of(d, sent) : 0, at = owed_at(d);
    if (sent == d->owed_by) return MH_OK;
    if (at > d->port->arena_bytes || num > (d->port->arena_bytes - at) / 4) return MH_ERROR_ARENA;
    memset(d->port->arena + at, 0, 4 * num);
    d->owed_by = sent;
    d->owed = num;
    return MH_OK;
}

static int read_bytes(void *from, void *to, uint32_t num) { return mh_frame_bytes(from, to, num); }

int mh_take_update(mh_device *d, mh_request *q, const mh_tensor *t, const mh_plan *p, const uint8_t *sent) {
    uint32_t i, k, room, bytes = q->in.data;
    slice s = {&d->model, sent};
    mh_numbers n = numbers_of(d, &s);
    uint32_t *places = (void *)mh_behind(d, p->arena_bytes, &room);
    int status;
    if (!sent || sent != d->base_of) return MH_ERROR_BORROWED;
    if (t->dtype != MH_WIRE_CODED || t->elements != elements_of(d, sent)) return MH_ERROR_SHAPE;
    for (i = 0; i < d->model.head->num_params; i++) {
        const float *start = mh_model_start(&d->model, i);
        float *now = mh_model_weight(&d->model, i);
        if (!sent[i]) continue;
        mh_borrow(d, i);
        d->came[i / 32] |= 1u << i % 32;
        for (k = 0; k < d->model.params[i].elements; k++) now[k] = start[k] + 0.0f; /* as the twin adds what isn't there */
    }
    status = mh_code_add(&n, bytes, places, room / 4, read_bytes, &q->in);
    return status == -2 ? MH_ERROR_ARENA : status ? MH_ERROR_FRAME : MH_OK;
}

static int write_bytes(void *to, const void *from, uint32_t num) { return mh_frame_put(to, from, num); }

int mh_answer_update(mh_device *d, const mh_request *q, const mh_code *c, const uint8_t *sent, const mh_metric *metrics,
                     uint32_t num, double weight) {
    float *owed = d->owed ? (void *)(d->port->arena + owed_at(d)) : 0;
    uint32_t i, k, at = 0;
    slice s = {&d->model, sent};
    mh_numbers n = numbers_of(d, &s);
    mh_made made;
    mh_writer w;
    for (i = 0; i < d->model.head->num_params; i++) {
        const float *start = mh_model_start(&d->model, i);
        float *now = mh_model_weight(&d->model, i);
        if (!sent[i]) continue;
        for (k = 0; k < d->model.params[i].elements; k++, at++) {
            if (c->is_delta) now[k] = now[k] - start[k];
            if (owed) now[k] = now[k] + owed[at];
        }
    }
    n.owed = owed;
    if (mh_code_make(c, &n, &made)) {
        d->owed_by = 0;
        d->owed = 0;
        return MH_ERROR_DIVERGED;
    }
    if (mh_begin(d, q, &w, 1, MH_FRAME_TENSOR(1) + 4 + made.bytes, num, weight)) return MH_NO_REPLY;
    mh_frame_put_tensor(&w, MH_ID_UPDATE, MH_WIRE_CODED, 1, &made.num);
    mh_frame_put(&w, &made.bytes, 4);
    mh_code_write(&n, &made, write_bytes, &w);
    return mh_end(&w, metrics, num);
}

#endif
