#include "mh_device.h"

#include <string.h>

#include "mh_f32.h"
#include "mh_inner.h"

void mh_borrow(mh_device *d, uint32_t param) { d->borrowed[param / 32] |= 1u << param % 32; }
void mh_own(mh_device *d, uint32_t param) { d->borrowed[param / 32] &= ~(1u << param % 32); }

static int did_come(const mh_device *d, uint32_t param) { return d->came[param / 32] >> param % 32 & 1; }

int mh_has_all(const mh_device *d) {
    uint32_t i;
    for (i = 0; i < MH_MAX_PARAMS / 32; i++)
        if (d->borrowed[i] & ~d->came[i]) return MH_ERROR_BORROWED;
    return MH_OK;
}

void mh_device_open(mh_device *d, const uint8_t *blob) {
    uint32_t bytes;
    const mh_value *stored;
    mh_model_open(&d->model, blob, d->port->arena);
    d->has_model = 1;
    stored = &d->model.values[d->model.head->stored_value];
    bytes = mh_value_elements(stored) * (stored->dtype == MH_S8 ? 1u : 4u);
    mh_store_init(&d->store, d->port, bytes);
    mh_model_reset(&d->model);
    memset(d->borrowed, 0, sizeof d->borrowed);
    memset(&d->batch, 0, sizeof d->batch);
    d->velocity = MH_VELOCITY_ZERO;
    d->owed_by = d->base_of = 0;
    d->owed = 0;
}

void mh_device_init(mh_device *d, const mh_port *port) {
    memset(d, 0, sizeof *d);
    d->port = port;
    d->boots = port->random(port->self);
    mh_paint(d);
    mh_link_init(&d->link, port);
    mh_store_init(&d->store, port, 0);
    mh_slots_init(&d->slots, port);
    if (mh_slots_blob(&d->slots)) mh_device_open(d, mh_slots_blob(&d->slots));
}

static int is_text(const mh_setting *s, const char *text) {
    uint32_t i;
    for (i = 0; i < s->text_bytes; i++)
        if (text[i] != s->text[i]) return 0; /* also where the text given ends */
    return text[i] == 0;
}

static int place_of_text(const mh_setting *s, const char *const *texts, int num) {
    int i;
    for (i = 0; s->type == MH_TEXT && i < num; i++)
        if (is_text(s, texts[i])) return i;
    return -1;
}

static int read_float(const mh_setting *s, float *to) {
    double value = s->type == MH_INT ? (double)s->i32 : s->f64;
    if (s->type == MH_TEXT || value > 3.4028234e38 || value < -3.4028234e38) return MH_ERROR_SETTING;
    *to = (float)value;
    return MH_OK;
}

static int read_int(const mh_setting *s, int32_t *to) {
    *to = s->i32;
    return s->type == MH_INT ? MH_OK : MH_ERROR_SETTING;
}

static int read_count(const mh_setting *s, int32_t *to) { return read_int(s, to) || *to < 0 ? MH_ERROR_SETTING : MH_OK; }

static int read_text(const mh_setting *s, char *to, uint8_t *num) {
    memcpy(to, s->text, s->text_bytes);
    *num = s->text_bytes;
    return s->type == MH_TEXT ? MH_OK : MH_ERROR_SETTING;
}

static int read_setting(mh_request *q, const mh_setting *s) {
    static const char *const losses[] = {"cross_entropy", "mse"}, *const sets[] = {"train", "test", "adapt"};
    static const char *const whats[] = {"", "examples", "test", "h", "hy", "blob", "momentum"}; /* enum mh_what */
    int place;
    q->given |= (uint64_t)1 << s->number;
    switch (s->number) {
    case MH_SET_LR:
        return read_float(s, &q->sgd.lr);
    case MH_SET_MOMENTUM:
        return read_float(s, &q->sgd.momentum);
    case MH_SET_WEIGHT_DECAY:
        return read_float(s, &q->sgd.decay);
    case MH_SET_PROXIMAL_MU:
        return read_float(s, &q->sgd.mu);
    case MH_SET_TEMPERATURE:
        return read_float(s, &q->temperature) || !(q->temperature > 0.0f) ? MH_ERROR_SETTING : MH_OK;
    case MH_SET_SOFT_WEIGHT:
        return read_float(s, &q->soft_weight);
    case MH_SET_CLIP:
        return read_float(s, &q->clip);
    case MH_SET_SCALE:
        return read_float(s, &q->scale);
    case MH_SET_SHARE:
        q->share = s->type == MH_FLOAT ? s->f64 : 0.0;
        return q->share > 0.0 && q->share <= 1.0 ? MH_OK : MH_ERROR_SETTING;
    case MH_SET_CODE:
        return read_int(s, &q->code);
    case MH_SET_STREAM:
        return read_count(s, &q->stream);
    case MH_SET_BATCH:
        return read_count(s, &q->batch);
    case MH_SET_EPOCHS:
        return read_count(s, &q->epochs);
    case MH_SET_STEPS:
        return read_count(s, &q->steps);
    case MH_SET_STEP:
        return read_count(s, &q->step);
    case MH_SET_EPOCH:
        return read_count(s, &q->epoch);
    case MH_SET_SEED_LOW:
        return read_int(s, &q->seed_low);
    case MH_SET_SEED_HIGH:
        return read_int(s, &q->seed_high);
    case MH_SET_TRAIN:
        return read_text(s, q->train, &q->train_bytes);
    case MH_SET_SEND:
        return read_text(s, q->send, &q->send_bytes);
    case MH_SET_LOSS:
        place = place_of_text(s, losses, 2);
        q->loss = (uint8_t)place;
        return place < 0 ? MH_ERROR_SETTING : MH_OK;
    case MH_SET_WHAT:
        place = place_of_text(s, whats, 7);
        q->what = (uint8_t)place;
        return place < 0 ? MH_ERROR_SETTING : MH_OK;
    case MH_SET_ROWS: /* a set, or the bytes of a blob */
        if (s->type == MH_INT) return read_count(s, &q->total);
        place = place_of_text(s, sets, MH_NUM_SETS);
        q->rows = (int8_t)place;
        return place < 0 ? MH_ERROR_SETTING : MH_OK;
    default:
        return MH_ERROR_SETTING;
    }
}

static int read_request(mh_device *d, mh_request *q) {
    mh_setting s;
    memset(q, 0, sizeof *q);
    memset(d->came, 0, sizeof d->came);
    q->temperature = q->scale = 1.0f;
    q->share = 1.0;
    q->epochs = 1;
    q->rows = -1;
    q->op = 9; /* HELLO, until the frame has said what it is: a refusal is a reply to an op */
    if (mh_frame_begin(&q->in, &d->link)) return MH_ERROR_FRAME;
    q->op = q->in.op;
    q->round = q->in.round;
    q->device = q->in.device;
    while (q->in.num_settings) {
        int error;
        if (mh_frame_setting(&q->in, &s)) return MH_ERROR_FRAME;
        error = read_setting(q, &s);
        if (error) return error;
    }
    return MH_OK;
}

int mh_finish(mh_device *d, mh_request *q) {
    int status = mh_frame_done(&q->in);
    if (mh_link_close(&d->link)) return MH_NO_REPLY;
    return status ? MH_ERROR_FRAME : MH_OK;
}

int mh_take_param(mh_device *d, mh_request *q, const mh_tensor *t) {
    const mh_param *p;
    uint32_t i, axis;
    for (i = 0; i < d->model.head->num_params; i++)
        if (d->model.params[i].name_id == t->id) break;
    if (i == d->model.head->num_params || did_come(d, i)) return MH_ERROR_TENSOR;
    p = &d->model.params[i];
    if (t->ndim != p->ndim || t->dtype > MH_WIRE_BF16) return MH_ERROR_SHAPE;
    for (axis = 0; axis < p->ndim; axis++)
        if (t->shape[axis] != p->shape[axis]) return MH_ERROR_SHAPE;
    mh_borrow(d, i);
    d->came[i / 32] |= 1u << i % 32;
    return mh_frame_f32(&q->in, t, mh_model_weight(&d->model, i), p->elements) ? MH_ERROR_FRAME : MH_OK;
}

int mh_take_params(mh_device *d, mh_request *q) {
    mh_tensor t;
    while (q->in.num_tensors) {
        int error;
        if (mh_frame_tensor(&q->in, &t)) return MH_ERROR_FRAME;
        error = mh_take_param(d, q, &t);
        if (error) return error;
    }
    return mh_finish(d, q);
}

static int is_finite(double x) { return x - x == 0.0; }

int mh_begin(mh_device *d, const mh_request *q, mh_writer *w, uint32_t num_tensors, uint32_t tensor_bytes,
             uint32_t num_metrics, double weight) {
    uint32_t total = MH_FRAME_OVERHEAD + tensor_bytes + num_metrics * MH_FRAME_METRIC;
    return mh_frame_reply(w, &d->link, q->op, q->round, q->device, (uint16_t)num_tensors, (uint16_t)num_metrics, weight,
                          total)
               ? MH_NO_REPLY
               : MH_OK;
}

int mh_end(mh_writer *w, const mh_metric *metrics, uint32_t num) {
    uint32_t i;
    for (i = 0; i < num; i++) mh_frame_put_metric(w, metrics[i].id, metrics[i].value);
    return mh_frame_end(w) ? MH_NO_REPLY : MH_OK;
}

int mh_answer(mh_device *d, const mh_request *q, const mh_metric *metrics, uint32_t num, double weight) {
    mh_writer w;
    uint32_t i;
    for (i = 0; i < num; i++)
        if (!is_finite(metrics[i].value)) return MH_ERROR_DIVERGED;
    return mh_begin(d, q, &w, 0, 0, num, weight) ? MH_NO_REPLY : mh_end(&w, metrics, num);
}

int mh_param_is_finite(const mh_device *d, uint32_t param) {
    const float *x = mh_model_weight(&d->model, param);
    uint32_t i;
    for (i = 0; i < d->model.params[param].elements; i++)
        if (!(x[i] - x[i] == 0.0f)) return 0;
    return 1;
}

uint32_t mh_params_bytes(const mh_device *d, const uint8_t *flags, uint32_t *num) {
    uint32_t i, bytes = 0;
    *num = 0;
    for (i = 0; flags && i < d->model.head->num_params; i++)
        if (flags[i]) {
            bytes += MH_FRAME_TENSOR(d->model.params[i].ndim) + d->model.params[i].elements * 4;
            ++*num;
        }
    return bytes;
}

void mh_put_params(mh_device *d, mh_writer *w, const uint8_t *flags, int velocities) {
    uint32_t i, axis, shape[4];
    for (i = 0; flags && i < d->model.head->num_params; i++) {
        const mh_param *p = &d->model.params[i];
        if (!flags[i]) continue;
        for (axis = 0; axis < 4; axis++) shape[axis] = p->shape[axis];
        mh_frame_put_tensor(w, p->name_id, MH_WIRE_F32, p->ndim, shape);
        mh_frame_put(w, velocities ? mh_model_velocity(&d->model, i) : mh_model_weight(&d->model, i), p->elements * 4);
    }
}

int mh_sent(const mh_device *d, const char *name, uint32_t name_bytes, const uint8_t **sent) {
    const mh_plan *p;
    *sent = 0;
    if (name_bytes == 4 && name[0] == 'n' && name[1] == 'o' && name[2] == 'n' && name[3] == 'e') return MH_OK;
    p = mh_model_plan(&d->model, -1, name, name_bytes);
    if (!p || p->kind == MH_PLAN_STORE) return MH_ERROR_SLICE;
    *sent = mh_model_sent(&d->model, p);
    return MH_OK;
}

uint8_t mh_shape_of(const mh_value *v, uint32_t num, uint32_t shape[4]) {
    shape[0] = num, shape[1] = v->c;
    if (v->h == 1 && v->w == 1) return 2;
    shape[2] = v->h == 1 ? v->w : v->h, shape[3] = v->w;
    return v->h == 1 ? 3 : 4;
}

uint32_t mh_rows_bytes(const mh_value *v, uint32_t num) {
    uint32_t shape[4];
    return MH_FRAME_TENSOR(mh_shape_of(v, num, shape)) + num * mh_value_elements(v) * 4;
}

void mh_put_row(mh_device *d, const mh_plan *p, int set, uint32_t row) {
    memcpy(mh_model_value(&d->model, p, d->model.head->stored_value), mh_store_row(&d->store, set, row),
           d->store.value_bytes);
}

int32_t mh_label(const mh_device *d, int set, uint32_t row) {
    int32_t label = mh_store_label(&d->store, set, row);
    return label < d->model.head->num_classes ? label : -1; /* flash may rot; a kernel may not read past the logits */
}

void mh_run(mh_device *d, const mh_plan *p) {
    uint32_t then = d->port->ticks(d->port->self);
    mh_model_forward(&d->model, p);
    d->ticks += (uint32_t)(d->port->ticks(d->port->self) - then);
}

uint8_t *mh_behind(const mh_device *d, uint32_t plan_bytes, uint32_t *num) {
    uint32_t at = (plan_bytes + 15) / 16 * 16;
    if (d->owed) at = (d->model.head->arena_bytes + 15) / 16 * 16 + (4 * d->owed + 15) / 16 * 16;
    *num = at < d->port->arena_bytes ? d->port->arena_bytes - at : 0;
    return d->port->arena + (*num ? at : 0);
}

int mh_score(mh_device *d, mh_request *q, int set) {
    const mh_plan *p = mh_model_plan(&d->model, MH_PLAN_INFER, 0, 0);
    uint32_t i, n = d->store.count[set], correct = 0, classes = d->model.head->num_classes;
    mh_metric metrics[3];
    double total = 0.0;
    if (!p || !classes) return MH_ERROR_OP;
    for (i = 0; i < n; i++) {
        const float *logits = mh_model_value(&d->model, p, mh_model_output(&d->model));
        int32_t y = mh_label(d, set, i);
        float loss;
        mh_put_row(d, p, set, i);
        mh_run(d, p);
        loss = q->loss == MH_MSE ? mh_mse_f32(logits, classes, y, 1.0f, 0) : mh_cross_entropy_f32(logits, classes, y, 1.0f, 0);
        total += (double)loss;
        correct += y >= 0 && mh_argmax_f32(logits, classes) == (uint32_t)y;
    }
    metrics[0].id = MH_ID_ROWS, metrics[0].value = (double)n;
    metrics[1].id = MH_ID_LOSS, metrics[1].value = n ? total / (double)n : 0.0;
    metrics[2].id = MH_ID_CORRECT, metrics[2].value = (double)correct;
    return mh_answer(d, q, metrics, 3, (double)n);
}

static int does(mh_device *d, mh_request *q) {
    if (!d->has_model && q->op != 1 && q->op != 9 && q->op != 11) return MH_ERROR_MODEL;
    switch (q->op) { /* midhaul.message.Op */
    case 1:
        return mh_op_load(d, q);
    case 2:
        return mh_op_read(d, q);
    case 5:
        return mh_op_forward(d, q);
    case 7:
        return mh_op_evaluate(d, q);
    case 8:
        return mh_op_predict(d, q);
    case 9:
        return mh_op_hello(d, q);
    case 10:
        return mh_op_push(d, q);
    case 11:
        return mh_op_stats(d, q);
#ifdef MH_INFER_ONLY
    default:
        return MH_ERROR_TRAINING;
#else
    case 3:
        return mh_op_fit(d, q);
    case 4:
        return mh_op_adapt(d, q);
    default:
        return mh_op_backward(d, q);
#endif
    }
}

int mh_device_serve(mh_device *d) {
    mh_request q;
    int error;
    if (mh_link_open(&d->link) < 0) return -1;
    error = read_request(d, &q);
    if (q.op != 11 && q.op != 9) d->ticks = 0; /* STATS tells of the op before it */
    if (error == MH_OK) error = does(d, &q);
    if (error == MH_OK) return 0;
    d->frames_refused++;
    if (error > 0 && mh_link_close(&d->link) == 0) {
        mh_metric why;
        why.id = MH_ID_ERROR;
        why.value = (double)error;
        mh_answer(d, &q, &why, 1, 0.0);
    }
    return 0;
}

void mh_device_run(mh_device *d) {
    while (mh_device_serve(d) == 0) {
    }
}
