/* The ops that train. */
#include "mh_inner.h"

#ifndef MH_INFER_ONLY

#include <string.h>

#include "mh_f32.h"
#include "mh_math.h"
#include "mh_rng.h"

/* What a step needs beside the weights must be in the blob for all that the plan trains. */
static int can_step(const mh_device *d, const mh_plan *p, const mh_request *q, int needs_start) {
    uint32_t i;
    if (!(q->given >> MH_SET_LR & 1)) return MH_ERROR_SETTING;
    for (i = 0; i < d->model.head->num_params; i++) {
        if (!mh_model_trained(&d->model, p)[i]) continue;
        if (needs_start && !mh_model_start(&d->model, i)) return MH_ERROR_START;
        if (q->sgd.momentum != 0.0f && !mh_model_velocity(&d->model, i)) return MH_ERROR_MOMENTUM;
    }
    return MH_OK;
}

/* Runs one row forward, puts the gradient of its loss at the end, and goes back. */
static float row_gradients(mh_device *d, const mh_request *q, const mh_plan *p, int set, uint32_t row, const float *soft,
                           float scale) {
    uint32_t then = d->port->ticks(d->port->self), n = d->model.head->num_classes;
    const float *logits = mh_model_value(&d->model, p, mh_model_output(&d->model));
    float *g = mh_model_gradient(&d->model, p), loss;
    int32_t y = mh_label(d, set, row);
    mh_put_row(d, p, set, row);
    mh_model_forward(&d->model, p);
    if (soft && q->loss == MH_MSE)
        loss = mh_mse_distillation_f32(logits, soft + (uint64_t)row * n, n, y, q->soft_weight, scale, g);
    else if (soft)
        loss = mh_distillation_f32(logits, soft + (uint64_t)row * n, n, y, q->temperature, q->soft_weight, scale, g,
                                   mh_model_scratch(&d->model, p));
    else if (q->loss == MH_MSE)
        loss = mh_mse_f32(logits, n, y, scale, g);
    else
        loss = mh_cross_entropy_f32(logits, n, y, scale, g);
    mh_model_backward(&d->model, p);
    d->ticks += (uint32_t)(d->port->ticks(d->port->self) - then);
    return loss;
}

static void step(mh_device *d, const mh_request *q, const mh_plan *p) {
    uint32_t then = d->port->ticks(d->port->self);
    mh_model_step(&d->model, p, &q->sgd);
    d->ticks += (uint32_t)(d->port->ticks(d->port->self) - then);
}

/* ops._descend over the batches of ops.batches; order: [rows of the set]. */
static void descend(mh_device *d, const mh_request *q, const mh_plan *p, int set, const float *soft, uint16_t *order,
                    double *seen, double *total) {
    uint32_t n = d->store.count[set], size = q->batch ? (uint32_t)q->batch : n, made = 0, epoch, first, i;
    *seen = *total = 0.0;
    for (epoch = 0; n && (q->steps ? made < (uint32_t)q->steps : epoch < (uint32_t)q->epochs); epoch++) {
        mh_permutation_u16(d->seed, q->round, q->device, MH_USE_BATCH | epoch << 8, order, n);
        for (first = 0; first < n; first += size) {
            uint32_t num = n - first < size ? n - first : size;
            float scale = 1.0f / (float)num, loss = 0.0f;
            if (q->steps && made == (uint32_t)q->steps) return;
            made++;
            mh_model_zero_sums(&d->model, p);
            for (i = 0; i < num; i++) loss += row_gradients(d, q, p, set, order[first + i], soft, scale);
            step(d, q, p);
            *total += (double)(loss / (float)num) * num;
            *seen += num;
        }
    }
}

/* Before a FIT or an ADAPT: what is trained is the device's own again only when the op says so. */
static void prepare(mh_device *d, const mh_request *q, const mh_plan *p, int keeps_start) {
    uint32_t i;
    for (i = 0; i < d->model.head->num_params; i++) {
        if (!mh_model_trained(&d->model, p)[i]) continue;
        if (keeps_start) memcpy(mh_model_start(&d->model, i), mh_model_weight(&d->model, i), d->model.params[i].elements * 4);
    }
    if (q->sgd.momentum != 0.0f) {
        d->velocity = d->velocity == MH_VELOCITY_ZERO ? MH_VELOCITY_ZERO : MH_VELOCITY_LOST;
        mh_model_zero_velocities(&d->model);
    }
}

/* ops.clip_update of the tensors that are sent; the others have no update or aren't clipped. */
static void clip_update(mh_device *d, const mh_plan *p, const uint8_t *sent, float bound) {
    double squares = 0.0;
    float norm, factor;
    uint32_t i, k;
    for (i = 0; sent && i < d->model.head->num_params; i++) {
        const float *now = mh_model_weight(&d->model, i), *start = mh_model_start(&d->model, i);
        if (!sent[i] || !mh_model_trained(&d->model, p)[i]) continue;
        for (k = 0; k < d->model.params[i].elements; k++) {
            double by = (double)now[k] - (double)start[k];
            squares += by * by;
        }
    }
    norm = mh_sqrt_f32((float)squares);
    if (!(norm > bound)) return;
    factor = bound / norm;
    for (i = 0; sent && i < d->model.head->num_params; i++) {
        float *now = mh_model_weight(&d->model, i);
        const float *start = mh_model_start(&d->model, i);
        if (!sent[i] || !mh_model_trained(&d->model, p)[i]) continue;
        for (k = 0; k < d->model.params[i].elements; k++) now[k] = start[k] + (now[k] - start[k]) * factor;
    }
}

/* A coded slice is one that is trained, all of it; and where differences travel, one whose starting values are kept. */
static int can_code(const mh_device *d, const uint8_t *trained, const uint8_t *sent, int is_delta) {
    uint32_t i, num = 0;
    for (i = 0; sent && i < d->model.head->num_params; i++) {
        if (!sent[i]) continue;
        num++;
        if (!trained[i]) return MH_ERROR_SLICE;
        if (is_delta && !mh_model_start(&d->model, i)) return MH_ERROR_START;
    }
    return num ? MH_OK : MH_ERROR_SLICE;
}

/* Whether a message had all of a slice. */
static int came_all(const mh_device *d, const uint8_t *sent) {
    uint32_t i;
    for (i = 0; i < d->model.head->num_params; i++)
        if (sent[i] && !(d->came[i / 32] >> i % 32 & 1)) return 0;
    return 1;
}

int mh_op_fit(mh_device *d, mh_request *q) {
    const mh_plan *p = mh_model_plan(&d->model, MH_PLAN_TRAIN, q->train, q->train_bytes);
    uint32_t i, num, bytes, room, used = 0, n = d->store.count[MH_TRAIN], classes = d->model.head->num_classes;
    int is_coded = q->given >> MH_SET_CODE & 1, needs_start = q->sgd.mu != 0.0f || q->clip != 0.0f, is_base, error;
    const uint8_t *sent = 0, *trained;
    mh_code code;
    mh_metric metrics[2];
    float *soft = 0;
    uint8_t *behind;
    mh_writer w;
    mh_tensor t;
    if (!p) return MH_ERROR_SLICE;
    error = can_step(d, p, q, needs_start);
    if (error == MH_OK && q->given >> MH_SET_SEND & 1) error = mh_sent(d, q->send, q->send_bytes, &sent);
    if (error) return error;
    trained = mh_model_trained(&d->model, p);
    if (is_coded) {
        error = mh_coded(d, q, &code);
        if (error == MH_OK) error = can_code(d, trained, sent, code.is_delta);
        if (error == MH_OK) error = mh_owe(d, code.feeds_back ? sent : 0);
        if (error) return error;
        needs_start |= code.is_delta;
    }
    is_base = can_code(d, trained, sent, 1) == MH_OK;
    behind = mh_behind(d, p->arena_bytes, &room);
    while (q->in.num_tensors) {
        if (mh_frame_tensor(&q->in, &t)) return MH_ERROR_FRAME;
        if (t.id == MH_ID_UPDATE) {
            error = soft ? MH_ERROR_TENSOR : mh_take_update(d, q, &t, p, sent);
            if (error) return error;
        } else if (t.id == MH_ID_LOGITS) {
            if (soft) return MH_ERROR_TENSOR;
            if (t.ndim != 2 || t.shape[0] != n || t.shape[1] != classes) return MH_ERROR_SHAPE;
            if ((uint64_t)n * classes * 4 > room) return MH_ERROR_ARENA;
            used = n * classes * 4;
            soft = (void *)behind;
            if (mh_frame_f32(&q->in, &t, soft, n * classes)) return MH_ERROR_FRAME;
        } else {
            error = mh_take_param(d, q, &t);
            if (error) return error;
        }
    }
    error = mh_finish(d, q);
    if (error == MH_OK) error = mh_has_all(d);
    if (error == MH_OK && 2 * n > room - used) error = MH_ERROR_ARENA;
    if (error) return error;
    prepare(d, q, p, needs_start || is_base);
    d->base_of = is_base && came_all(d, sent) ? sent : 0;
    metrics[0].id = MH_ID_ROWS, metrics[1].id = MH_ID_LOSS;
    descend(d, q, p, MH_TRAIN, soft, (void *)(behind + used), &metrics[0].value, &metrics[1].value);
    if (metrics[0].value > 0.0) metrics[1].value /= metrics[0].value;
    if (q->clip != 0.0f) clip_update(d, p, sent, q->clip);
    error = metrics[1].value - metrics[1].value == 0.0 ? MH_OK : MH_ERROR_DIVERGED;
    for (i = 0; i < d->model.head->num_params; i++) {
        if (!trained[i]) continue;
        mh_borrow(d, i);
        if (!mh_param_is_finite(d, i)) error = MH_ERROR_DIVERGED;
    }
    if (error) return error;
    for (i = 0; i < d->model.head->num_params; i++)
        if (trained[i] && !(sent && sent[i])) mh_own(d, i);
    if (is_coded) return mh_answer_update(d, q, &code, sent, metrics, 2, (double)n);
    bytes = mh_params_bytes(d, sent, &num);
    if (mh_begin(d, q, &w, num, bytes, 2, (double)n)) return MH_NO_REPLY;
    mh_put_params(d, &w, sent, 0);
    return mh_end(&w, metrics, 2);
}

int mh_op_adapt(mh_device *d, mh_request *q) {
    const mh_plan *p = mh_model_plan(&d->model, MH_PLAN_TRAIN, q->train, q->train_bytes);
    uint32_t i, room, n = d->store.count[MH_ADAPT];
    int error = mh_take_params(d, q), keeps_start;
    double seen, total;
    uint8_t *behind;
    if (error == MH_OK) error = mh_has_all(d);
    if (error) return error;
    if (!n) return mh_score(d, q, MH_TEST);
    if (!p) return MH_ERROR_SLICE;
    keeps_start = can_step(d, p, q, 1) == MH_OK;
    if (!keeps_start) error = can_step(d, p, q, q->sgd.mu != 0.0f);
    if (error) return error;
    behind = mh_behind(d, p->arena_bytes, &room);
    if (2 * n > room) return MH_ERROR_ARENA;
    prepare(d, q, p, keeps_start);
    if (keeps_start) d->base_of = 0;
    descend(d, q, p, MH_ADAPT, 0, (void *)behind, &seen, &total);
    error = mh_score(d, q, MH_TEST);
    for (i = 0; i < d->model.head->num_params; i++) { /* ADAPT leaves the device as it was, if the blob keeps what was */
        if (!mh_model_trained(&d->model, p)[i]) continue;
        if (keeps_start)
            memcpy(mh_model_weight(&d->model, i), mh_model_start(&d->model, i), d->model.params[i].elements * 4);
        else
            mh_borrow(d, i);
    }
    return error;
}

/* One row of the gradient at the cut; whole numbers are times the setting `scale`. */
static int take_gradient(mh_device *d, mh_request *q, const mh_tensor *t, const mh_plan *p) {
    uint32_t i, n = mh_value_elements(&d->model.values[mh_model_output(&d->model)]);
    float *g = mh_model_gradient(&d->model, p);
    if (mh_frame_f32(&q->in, t, g, n)) return MH_ERROR_FRAME;
    if (t->dtype >= MH_WIRE_I8)
        for (i = 0; i < n; i++) g[i] *= q->scale;
    return MH_OK;
}

int mh_op_backward(mh_device *d, mh_request *q) {
    const mh_plan *p = q->train_bytes ? mh_model_plan(&d->model, MH_PLAN_BACKWARD, q->train, q->train_bytes)
                                      : mh_model_plan(&d->model, MH_PLAN_BACKWARD, "front", 5);
    uint32_t i, n = mh_value_elements(&d->model.values[mh_model_output(&d->model)]);
    mh_metric rows;
    uint16_t *order;
    mh_tensor t;
    int error;
    if (!d->batch.is_open) return MH_ERROR_BATCH;
    if (!p) return MH_ERROR_SLICE;
    error = can_step(d, p, q, q->sgd.mu != 0.0f);
    if (error == MH_OK) error = mh_has_all(d);
    if (error == MH_OK && q->sgd.momentum != 0.0f && d->velocity == MH_VELOCITY_LOST) error = MH_ERROR_MOMENTUM_LOST;
    if (error == MH_OK) error = mh_batch_order(d, &d->batch, p, &order);
    if (error) return error;
    if (mh_frame_tensor(&q->in, &t)) return MH_ERROR_FRAME;
    if (t.id != MH_ID_G || q->in.num_tensors) return MH_ERROR_TENSOR;
    if (t.ndim < 2 || t.shape[0] != d->batch.num || (uint64_t)t.shape[0] * n != t.elements) return MH_ERROR_SHAPE;
    mh_model_zero_sums(&d->model, p);
    for (i = 0; i < d->batch.num; i++) {
        uint32_t then;
        mh_put_row(d, p, MH_TRAIN, order ? order[d->batch.first + i] : i);
        mh_run(d, p);
        error = take_gradient(d, q, &t, p);
        if (error) return error;
        then = d->port->ticks(d->port->self);
        mh_model_backward(&d->model, p);
        d->ticks += (uint32_t)(d->port->ticks(d->port->self) - then);
    }
    error = mh_finish(d, q);
    if (error) return error;
    d->batch.is_open = 0;
    rows.id = MH_ID_ROWS, rows.value = (double)d->batch.num;
    if (!d->batch.num) return mh_answer(d, q, &rows, 1, (double)d->store.count[MH_TRAIN]);
    if (q->sgd.momentum != 0.0f) {
        if (d->velocity == MH_VELOCITY_ZERO) mh_model_zero_velocities(&d->model);
        d->velocity = MH_VELOCITY_OWN;
    }
    step(d, q, p);
    return mh_answer(d, q, &rows, 1, (double)d->batch.num);
}

#endif
