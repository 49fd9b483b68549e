/* The ops that don't train. */
#include <string.h>

#include "mh_inner.h"
#include "mh_s8.h" /* mh_packing */

#define PAINT 0xa5
#define NUM_STAGED 64 /* numbers on their way from a frame to the flash */

static double rows_of(const mh_device *d) { return (double)d->store.count[MH_TRAIN]; }

static int answer_rows(mh_device *d, const mh_request *q, double rows, double weight) {
    mh_metric metric;
    metric.id = MH_ID_ROWS;
    metric.value = rows;
    return mh_answer(d, q, &metric, 1, weight);
}

int mh_op_hello(mh_device *d, mh_request *q) {
    mh_metric m[11];
    int error = mh_finish(d, q);
    if (error) return error;
    if (q->given >> MH_SET_SEED_LOW & 1 || q->given >> MH_SET_SEED_HIGH & 1)
        d->seed = (uint64_t)(uint32_t)q->seed_high << 32 | (uint32_t)q->seed_low;
    m[0].id = MH_ID_PROTOCOL, m[0].value = MH_PROTOCOL;
    m[1].id = MH_ID_MODEL_ID, m[1].value = d->has_model ? (double)d->model.head->model_id : 0.0;
    m[2].id = MH_ID_ARENA_BYTES, m[2].value = (double)d->port->arena_bytes;
    m[3].id = MH_ID_SLOT_BYTES, m[3].value = (double)d->port->slot_bytes;
    m[4].id = MH_ID_STORE_BYTES, m[4].value = (double)d->port->store_bytes;
    m[5].id = MH_ID_ROWS_TRAIN, m[5].value = (double)d->store.count[MH_TRAIN];
    m[6].id = MH_ID_ROWS_TEST, m[6].value = (double)d->store.count[MH_TEST];
    m[7].id = MH_ID_ROWS_ADAPT, m[7].value = (double)d->store.count[MH_ADAPT];
    m[8].id = MH_ID_NUM_PARAMS, m[8].value = d->has_model ? (double)d->model.head->num_params : 0.0;
    m[9].id = MH_ID_PACKING, m[9].value = (double)mh_packing();
    m[10].id = MH_ID_BOOTS, m[10].value = (double)d->boots;
    return mh_answer(d, q, m, 11, rows_of(d));
}

/* A part of a blob; with the last one the device begins anew. */
static int load_blob(mh_device *d, mh_request *q) {
    uint32_t at = (uint32_t)q->step, done, part;
    uint8_t stage[4 * NUM_STAGED];
    enum mh_error error;
    mh_tensor t;
    int status;
    if (!(q->given >> MH_SET_STEP & 1) || q->total == 0) return MH_ERROR_SETTING;
    if (mh_frame_tensor(&q->in, &t)) return MH_ERROR_FRAME;
    if (t.id != MH_ID_BLOB || (t.dtype != MH_WIRE_U8 && t.dtype != MH_WIRE_I8)) return MH_ERROR_TENSOR;
    if (at == 0) {
        error = mh_slots_begin(&d->slots, (uint32_t)q->total);
        if (error) return error;
    }
    if (d->slots.total != (uint32_t)q->total || at > d->slots.at) return MH_ERROR_BLOB_ORDER;
    for (done = 0; done < t.elements; done += part) {
        part = t.elements - done < sizeof stage ? t.elements - done : (uint32_t)sizeof stage;
        if (mh_frame_bytes(&q->in, stage, part)) return MH_ERROR_FRAME;
        error = mh_slots_put(&d->slots, at + done, stage, part);
        if (error) return error;
    }
    status = mh_finish(d, q);
    if (status) return status;
    if (at + t.elements > d->slots.at) d->slots.at = at + t.elements;
    if (d->slots.at == d->slots.total) {
        error = mh_slots_commit(&d->slots);
        if (error) return error;
        mh_device_open(d, mh_slots_blob(&d->slots));
    }
    return answer_rows(d, q, (double)(at + t.elements), rows_of(d));
}

static int load_momentum(mh_device *d, mh_request *q) {
    uint32_t i, num = q->in.num_tensors;
    mh_tensor t;
    int error;
    d->velocity = MH_VELOCITY_LOST;
    mh_model_zero_velocities(&d->model);
    while (q->in.num_tensors) {
        if (mh_frame_tensor(&q->in, &t)) return MH_ERROR_FRAME;
        for (i = 0; i < d->model.head->num_params; i++)
            if (d->model.params[i].name_id == t.id) break;
        if (i == d->model.head->num_params) return MH_ERROR_TENSOR;
        if (!mh_model_velocity(&d->model, i)) return MH_ERROR_MOMENTUM;
        if (t.elements != d->model.params[i].elements) return MH_ERROR_SHAPE;
        if (mh_frame_f32(&q->in, &t, mh_model_velocity(&d->model, i), t.elements)) return MH_ERROR_FRAME;
    }
    error = mh_finish(d, q);
    if (error) return error;
    d->velocity = num ? MH_VELOCITY_OWN : MH_VELOCITY_ZERO;
    return answer_rows(d, q, 0.0, rows_of(d));
}

int mh_op_load(mh_device *d, mh_request *q) {
    uint32_t i;
    int error;
    if (q->what == MH_WHAT_BLOB) return load_blob(d, q);
    if (!d->has_model) return MH_ERROR_MODEL;
    if (q->what == MH_WHAT_MOMENTUM) return load_momentum(d, q);
    if (q->what != MH_WHAT_NONE) return MH_ERROR_SETTING;
    error = mh_take_params(d, q);
    if (error) return error;
    for (i = 0; i < MH_MAX_PARAMS / 32; i++) d->borrowed[i] &= ~d->came[i];
    d->batch.is_open = 0;
    return answer_rows(d, q, 0.0, rows_of(d));
}

static int read_rows(mh_device *d, mh_request *q, int set) {
    const mh_value *v = &d->model.values[0];
    uint32_t i, n = d->store.count[set], shape[4];
    mh_metric rows;
    mh_writer w;
    uint8_t ndim = mh_shape_of(v, n, shape);
    rows.id = MH_ID_ROWS, rows.value = 0.0;
    if (d->model.head->stored_value != 0 || v->dtype != MH_F32) return MH_ERROR_ROWS;
    if (mh_begin(d, q, &w, 2, mh_rows_bytes(v, n) + MH_FRAME_TENSOR(1) + 2 * n, 1, (double)n)) return MH_NO_REPLY;
    mh_frame_put_tensor(&w, MH_ID_X, MH_WIRE_F32, ndim, shape);
    for (i = 0; i < n; i++) mh_frame_put(&w, mh_store_row(&d->store, set, i), d->store.value_bytes);
    mh_frame_put_tensor(&w, MH_ID_Y, MH_WIRE_I16, 1, &n);
    for (i = 0; i < n; i++) mh_frame_put(&w, mh_store_row(&d->store, set, i) + d->store.value_bytes, 2);
    return mh_end(&w, &rows, 1);
}

static int read_momentum(mh_device *d, mh_request *q) {
    uint8_t flags[MH_MAX_PARAMS];
    uint32_t i, num, bytes;
    mh_metric rows;
    mh_writer w;
    if (d->velocity == MH_VELOCITY_LOST) return MH_ERROR_MOMENTUM_LOST;
    for (i = 0; i < d->model.head->num_params; i++)
        flags[i] = d->velocity == MH_VELOCITY_OWN && mh_model_velocity(&d->model, i);
    bytes = mh_params_bytes(d, flags, &num);
    rows.id = MH_ID_ROWS, rows.value = 0.0;
    if (mh_begin(d, q, &w, num, bytes, 1, rows_of(d))) return MH_NO_REPLY;
    mh_put_params(d, &w, flags, 1);
    return mh_end(&w, &rows, 1);
}

int mh_op_read(mh_device *d, mh_request *q) {
    const uint8_t *sent = 0;
    uint32_t i, num, bytes;
    mh_metric rows;
    mh_writer w;
    int error = mh_take_params(d, q);
    if (error) return error;
    if (q->what == MH_WHAT_EXAMPLES || q->what == MH_WHAT_TEST)
        return read_rows(d, q, q->what == MH_WHAT_TEST ? MH_TEST : MH_TRAIN);
    if (q->what == MH_WHAT_MOMENTUM) return read_momentum(d, q);
    if (q->what != MH_WHAT_NONE) return MH_ERROR_SETTING;
    error = q->given >> MH_SET_SEND & 1 ? mh_sent(d, q->send, q->send_bytes, &sent) : mh_sent(d, "whole", 5, &sent);
    if (error) return error;
    for (i = 0; sent && i < d->model.head->num_params; i++) {
        if (!sent[i]) continue;
        if ((d->borrowed[i / 32] & ~d->came[i / 32]) >> i % 32 & 1) return MH_ERROR_BORROWED;
        if (!mh_param_is_finite(d, i)) return MH_ERROR_DIVERGED; /* no reader takes such a frame */
    }
    bytes = mh_params_bytes(d, sent, &num);
    rows.id = MH_ID_ROWS, rows.value = 0.0;
    if (mh_begin(d, q, &w, num, bytes, 1, rows_of(d))) return MH_NO_REPLY;
    mh_put_params(d, &w, sent, 0);
    return mh_end(&w, &rows, 1);
}

/* Which rows FORWARD takes: one batch of the train set, shuffled, or all rows of a set as they lie. */
static void pick(const mh_device *d, const mh_request *q, int set, mh_batch *b) {
    uint64_t first = (uint64_t)q->batch * (uint32_t)q->step;
    uint32_t n = d->store.count[set];
    b->seed = d->seed;
    b->round = q->round;
    b->device = q->device;
    b->use = MH_USE_BATCH | (uint32_t)q->epoch << 8;
    b->first = 0;
    b->num = n;
    b->is_shuffled = set == MH_TRAIN && q->batch > 0;
    if (!b->is_shuffled) return;
    b->first = first < n ? (uint32_t)first : n;
    b->num = n - b->first < (uint32_t)q->batch ? n - b->first : (uint32_t)q->batch;
}

int mh_batch_order(const mh_device *d, const mh_batch *b, const mh_plan *p, uint16_t **order) {
    uint32_t room, n = d->store.count[MH_TRAIN];
    *order = 0;
    if (!b->is_shuffled || !b->num) return MH_OK;
    *order = (void *)mh_behind(d, p->arena_bytes, &room);
    if (room < 2 * n) return MH_ERROR_ARENA;
    mh_permutation_u16(b->seed, b->round, b->device, b->use, *order, n);
    return MH_OK;
}

int mh_op_forward(mh_device *d, mh_request *q) {
    const mh_plan *p = mh_model_plan(&d->model, MH_PLAN_INFER, 0, 0);
    int error = mh_take_params(d, q), set = q->rows < 0 ? MH_TRAIN : q->rows, sends_y = q->what == MH_WHAT_HY;
    uint32_t i, shape[4], bytes;
    const mh_value *v;
    uint16_t *order;
    mh_metric rows;
    mh_writer w;
    mh_batch b;
    if (error) return error;
    if (!p) return MH_ERROR_OP;
    if (q->what != MH_WHAT_NONE && q->what != MH_WHAT_H && !sends_y) return MH_ERROR_SETTING;
    error = mh_has_all(d);
    if (error) return error;
    pick(d, q, set, &b);
    error = mh_batch_order(d, &b, p, &order);
    if (error) return error;
    v = &d->model.values[mh_model_output(&d->model)];
    if ((uint64_t)b.num * mh_value_elements(v) > 0x3f000000u) return MH_ERROR_SHAPE; /* no frame holds it */
    bytes = mh_rows_bytes(v, b.num) + (sends_y ? MH_FRAME_TENSOR(1) + 2 * b.num : 0);
    rows.id = MH_ID_ROWS, rows.value = (double)b.num;
    if (mh_begin(d, q, &w, sends_y ? 2 : 1, bytes, 1, (double)b.num)) return MH_NO_REPLY;
    mh_frame_put_tensor(&w, MH_ID_H, MH_WIRE_F32, mh_shape_of(v, b.num, shape), shape);
    for (i = 0; i < b.num; i++) {
        mh_put_row(d, p, set, order ? order[b.first + i] : i);
        mh_run(d, p);
        mh_frame_put(&w, mh_model_value(&d->model, p, mh_model_output(&d->model)), mh_value_elements(v) * 4);
    }
    if (sends_y) {
        mh_frame_put_tensor(&w, MH_ID_Y, MH_WIRE_I16, 1, &b.num);
        for (i = 0; i < b.num; i++)
            mh_frame_put(&w, mh_store_row(&d->store, set, order ? order[b.first + i] : i) + d->store.value_bytes, 2);
    }
    if (set == MH_TRAIN) {
        d->batch = b;
        d->batch.is_open = 1;
    }
    return mh_end(&w, &rows, 1);
}

int mh_op_evaluate(mh_device *d, mh_request *q) {
    int error = mh_take_params(d, q);
    if (error == MH_OK) error = mh_has_all(d);
    return error ? error : mh_score(d, q, q->rows < 0 ? MH_TEST : q->rows);
}

/* Reads one row of x into the plan's first value; or, where that has no place, into the int8 value that it becomes. */
static int take_x(mh_device *d, mh_request *q, const mh_tensor *t, const mh_plan *p) {
    const mh_layer *l = &d->model.layers[0];
    const mh_value *out = &d->model.values[l->out];
    uint32_t i, k, part, n = mh_value_elements(&d->model.values[0]), channel = 0, position = 0;
    int8_t *y = mh_model_value(&d->model, p, l->out);
    float stage[NUM_STAGED];
    if (mh_model_places(&d->model, p, 0))
        return mh_frame_f32(&q->in, t, mh_model_value(&d->model, p, 0), n) ? MH_ERROR_FRAME : MH_OK;
    for (i = 0; i < n; i += part) {
        part = n - i < NUM_STAGED ? n - i : NUM_STAGED;
        if (mh_frame_f32(&q->in, t, stage, part)) return MH_ERROR_FRAME;
        for (k = 0; k < part; k++) { /* channels first as they come, channels last as they are kept */
            mh_quantise_f32_s8(stage + k, y + position * out->c + channel, 1, 1, out->scale, out->zero_point, l->qlow,
                               l->qhigh);
            if (++position == (uint32_t)out->h * out->w) position = 0, channel++;
        }
    }
    return MH_OK;
}

/* Reads one row of x, and gives where its stored value is then. */
static int take_row(mh_device *d, mh_request *q, const mh_tensor *t, const mh_plan *p, int is_store, void **stored) {
    int error = take_x(d, q, t, p);
    if (error) return error;
    if (is_store) mh_run(d, p);
    *stored = mh_model_value(&d->model, p, d->model.head->stored_value);
    return MH_OK;
}

static int is_x(const mh_device *d, const mh_tensor *t) {
    const mh_value *v = &d->model.values[0];
    return v->dtype == MH_F32 && t->ndim >= 2 && (uint64_t)t->shape[0] * mh_value_elements(v) == t->elements;
}

/* Logits of the x of a message, kept behind the plans until the message's end is read. */
static int predict_sent(mh_device *d, mh_request *q, const mh_tensor *t, const mh_plan *p, float **logits, uint32_t *num) {
    const mh_plan *store = d->model.head->stored_value ? mh_model_plan(&d->model, MH_PLAN_STORE, 0, 0) : 0;
    uint32_t i, room, n = mh_value_elements(&d->model.values[mh_model_output(&d->model)]);
    uint32_t stored_bytes = (d->store.value_bytes + 15) / 16 * 16;
    uint8_t *behind = mh_behind(d, store && store->arena_bytes > p->arena_bytes ? store->arena_bytes : p->arena_bytes, &room);
    int error = mh_has_all(d);
    if (error) return error;
    if (d->model.head->stored_value && !store) return MH_ERROR_OP;
    if (!is_x(d, t)) return MH_ERROR_SHAPE;
    if (room < stored_bytes || (uint64_t)t->shape[0] * n * 4 > room - stored_bytes) return MH_ERROR_ARENA;
    *logits = (void *)(behind + stored_bytes);
    *num = t->shape[0];
    for (i = 0; i < *num; i++) {
        void *stored;
        error = take_row(d, q, t, store ? store : p, store != 0, &stored);
        if (error) return error;
        memcpy(behind, stored, d->store.value_bytes); /* the two plans' places may overlap */
        memcpy(mh_model_value(&d->model, p, d->model.head->stored_value), behind, d->store.value_bytes);
        mh_run(d, p);
        memcpy(*logits + (uint64_t)i * n, mh_model_value(&d->model, p, mh_model_output(&d->model)), n * 4);
    }
    return MH_OK;
}

int mh_op_predict(mh_device *d, mh_request *q) {
    const mh_plan *p = mh_model_plan(&d->model, MH_PLAN_INFER, 0, 0);
    int set = q->rows < 0 ? MH_TEST : q->rows, has_x = 0, error;
    uint32_t i, num = d->store.count[set], shape[4];
    const mh_value *v;
    float *logits = 0;
    mh_metric rows;
    mh_writer w;
    mh_tensor t;
    if (!p) return MH_ERROR_OP;
    while (q->in.num_tensors) {
        if (mh_frame_tensor(&q->in, &t)) return MH_ERROR_FRAME;
        if (has_x) return MH_ERROR_TENSOR; /* what it was to be run with must come before it */
        has_x = t.id == MH_ID_X;
        error = has_x ? predict_sent(d, q, &t, p, &logits, &num) : mh_take_param(d, q, &t);
        if (error) return error;
    }
    error = mh_finish(d, q);
    if (error == MH_OK) error = mh_has_all(d);
    if (error) return error;
    v = &d->model.values[mh_model_output(&d->model)];
    rows.id = MH_ID_ROWS, rows.value = (double)num;
    if (mh_begin(d, q, &w, 1, mh_rows_bytes(v, num), 1, (double)num)) return MH_NO_REPLY;
    mh_frame_put_tensor(&w, MH_ID_LOGITS, MH_WIRE_F32, mh_shape_of(v, num, shape), shape);
    for (i = 0; i < num && !has_x; i++) {
        mh_put_row(d, p, set, i);
        mh_run(d, p);
        mh_frame_put(&w, mh_model_value(&d->model, p, mh_model_output(&d->model)), mh_value_elements(v) * 4);
    }
    if (has_x) mh_frame_put(&w, logits, num * mh_value_elements(v) * 4);
    return mh_end(&w, &rows, 1);
}

/* Rows go to the store as they come; where a feature is kept, each goes through the frozen layers on the way. */
static int push_x(mh_device *d, mh_request *q, const mh_tensor *t, int set) {
    const mh_plan *plan = d->model.head->stored_value ? mh_model_plan(&d->model, MH_PLAN_STORE, 0, 0) : 0;
    uint32_t i, at, part, elements = mh_value_elements(&d->model.values[0]), counted = d->store.count[set];
    float stage[NUM_STAGED];
    enum mh_error error;
    if (d->model.head->stored_value && !plan) return MH_ERROR_OP;
    if (!is_x(d, t)) return MH_ERROR_SHAPE;
    error = mh_store_fits(&d->store, set, t->shape[0]);
    for (i = 0; error == MH_OK && i < t->shape[0]; i++) {
        if (plan) {
            void *stored;
            int status = take_row(d, q, t, plan, 1, &stored);
            if (status) return status;
            error = mh_store_put(&d->store, set, counted + i, 0, stored, d->store.value_bytes);
            continue;
        }
        for (at = 0; error == MH_OK && at < elements; at += part) {
            part = elements - at < NUM_STAGED ? elements - at : NUM_STAGED;
            if (mh_frame_f32(&q->in, t, stage, part)) return MH_ERROR_FRAME;
            error = mh_store_put(&d->store, set, counted + i, 4 * at, stage, 4 * part);
        }
    }
    return error;
}

static int push_y(mh_device *d, mh_request *q, const mh_tensor *t, int set) {
    uint32_t i, classes = d->model.head->num_classes, counted = d->store.count[set];
    enum mh_error error;
    if (t->ndim != 1) return MH_ERROR_SHAPE;
    error = mh_store_fits(&d->store, set, t->elements);
    for (i = 0; error == MH_OK && i < t->elements; i++) {
        int32_t label;
        if (mh_frame_i32(&q->in, t, &label, 1)) return MH_ERROR_FRAME;
        if (label < -32768 || label > 32767 || (classes && label >= (int32_t)classes)) return MH_ERROR_LABEL;
        error = mh_store_put_label(&d->store, set, counted + i, label);
    }
    return error;
}

int mh_op_push(mh_device *d, mh_request *q) {
    uint32_t num_x = 0, num_y = 0, has_x = 0, has_y = 0;
    mh_tensor t;
    int error;
    if (q->rows < 0) return MH_ERROR_SETTING;
    d->batch.is_open = 0;
    if (q->step == 0) {
        uint32_t room; /* between ops, what lies behind the weights is free */
        uint8_t *spare = mh_behind(d, d->model.head->persist_bytes, &room);
        error = mh_store_begin(&d->store, q->rows, spare, room);
        if (error) return error;
    }
    while (q->in.num_tensors) {
        if (mh_frame_tensor(&q->in, &t)) return MH_ERROR_FRAME;
        if (t.id == MH_ID_X && !has_x) {
            has_x = 1, num_x = t.shape[0];
            error = push_x(d, q, &t, q->rows);
        } else if (t.id == MH_ID_Y && !has_y) {
            has_y = 1, num_y = t.elements;
            error = push_y(d, q, &t, q->rows);
        } else {
            error = MH_ERROR_TENSOR;
        }
        if (error) return error;
    }
    error = mh_finish(d, q);
    if (error) return error;
    if (!has_x || !has_y || num_x != num_y) return MH_ERROR_SHAPE;
    d->store.count[q->rows] += num_x;
    return answer_rows(d, q, (double)d->store.count[q->rows], rows_of(d));
}

void mh_paint(mh_device *d) {
    uint32_t from = d->has_model ? d->model.head->persist_bytes : 0;
    memset(d->port->arena + from, PAINT, d->port->arena_bytes - from);
}

int mh_op_stats(mh_device *d, mh_request *q) {
    uint32_t peak = d->port->arena_bytes;
    mh_metric m[6];
    int error = mh_finish(d, q);
    if (error) return error;
    while (peak && d->port->arena[peak - 1] == PAINT) peak--;
    m[0].id = MH_ID_TICKS, m[0].value = (double)d->ticks;
    m[1].id = MH_ID_ARENA_PEAK, m[1].value = (double)((peak + 15) / 16 * 16); /* buffers are whole pieces of 16 */
    m[2].id = MH_ID_STACK_PEAK, m[2].value = (double)d->port->stack_peak(d->port->self);
    m[3].id = MH_ID_ARENA_BYTES, m[3].value = (double)d->port->arena_bytes;
    m[4].id = MH_ID_STORE_USED, m[4].value = (double)mh_store_used(&d->store);
    m[5].id = MH_ID_FRAMES_REFUSED, m[5].value = (double)d->frames_refused;
    mh_paint(d); /* what stays between ops lies below; so the next peak is of what comes from here on */
    return mh_answer(d, q, m, 6, rows_of(d));
}
