#include "mh_model.h"

#include <string.h>

#include "mh_f32.h"
#include "mh_s8.h"

uint32_t mh_value_elements(const mh_value *v) { return (uint32_t)v->c * v->h * v->w; }

static const uint32_t *words_at(const mh_model *m, uint32_t at) { return (const void *)(m->blob + at); }

static float *floats_at(const mh_model *m, uint32_t offset) {
    return offset == MH_NONE32 ? 0 : (void *)(m->arena + offset);
}

void mh_model_open(mh_model *m, const uint8_t *blob, uint8_t *arena) {
    const mh_blob *head = (const void *)blob;
    m->blob = blob;
    m->head = head;
    m->values = (const void *)(blob + head->values_at);
    m->layers = (const void *)(blob + head->layers_at);
    m->params = (const void *)(blob + head->params_at);
    m->plans = (const void *)(blob + head->plans_at);
    m->arena = arena;
}

float *mh_model_weight(const mh_model *m, uint32_t param) { return floats_at(m, m->params[param].weight_offset); }
float *mh_model_velocity(const mh_model *m, uint32_t param) { return floats_at(m, m->params[param].velocity_offset); }
float *mh_model_start(const mh_model *m, uint32_t param) { return floats_at(m, m->params[param].start_offset); }

void mh_model_zero_velocities(const mh_model *m) {
    uint32_t i;
    for (i = 0; i < m->head->num_params; i++)
        if (mh_model_velocity(m, i)) memset(mh_model_velocity(m, i), 0, m->params[i].elements * 4);
}

void mh_model_reset(const mh_model *m) {
    uint32_t i;
    for (i = 0; i < m->head->num_params; i++)
        memcpy(mh_model_weight(m, i), m->blob + m->params[i].initial_at, m->params[i].elements * 4);
    mh_model_zero_velocities(m);
}

static int is_slice(const mh_model *m, const mh_plan *p, const char *name, uint32_t name_bytes) {
    uint32_t i;
    if (p->slice_bytes != name_bytes) return 0;
    for (i = 0; i < name_bytes; i++)
        if (m->blob[p->slice_at + i] != (uint8_t)name[i]) return 0;
    return 1;
}

const mh_plan *mh_model_plan(const mh_model *m, int kind, const char *name, uint32_t name_bytes) {
    uint32_t i;
    for (i = 0; i < m->head->num_plans; i++) {
        const mh_plan *p = &m->plans[i];
        if (kind >= 0 && p->kind != kind) continue;
        if (!name || is_slice(m, p, name, name_bytes)) return p;
    }
    return 0;
}

const uint8_t *mh_model_trained(const mh_model *m, const mh_plan *p) { return m->blob + p->trained_at; }
const uint8_t *mh_model_sent(const mh_model *m, const mh_plan *p) { return m->blob + p->sent_at; }
uint16_t mh_model_output(const mh_model *m) { return m->layers[m->head->num_layers - 1].out; }

int mh_model_places(const mh_model *m, const mh_plan *p, uint16_t value) {
    return words_at(m, p->values_at)[value] != MH_NONE32;
}

void *mh_model_value(const mh_model *m, const mh_plan *p, uint16_t value) {
    return m->arena + words_at(m, p->values_at)[value];
}

static void geometry_of(const mh_model *m, const mh_layer *l, mh_geometry *s) {
    const mh_value *in = &m->values[l->in0], *out = &m->values[l->out];
    s->ic = in->c, s->ih = in->h, s->iw = in->w;
    s->oc = out->c, s->oh = out->h, s->ow = out->w;
    s->kh = l->kh, s->kw = l->kw, s->sh = l->sh, s->sw = l->sw;
    s->pt = l->pt, s->pl = l->pl, s->dh = l->dh, s->dw = l->dw;
    s->groups = l->groups;
}

/* An adapter's own geometry: a dense layer is a 1x1 convolution over a map of one position. */
static void lora_geometry_of(const mh_model *m, const mh_layer *l, mh_geometry *s) {
    geometry_of(m, l, s);
    if (l->kind == MH_DENSE) {
        s->ic = (uint16_t)mh_value_elements(&m->values[l->in0]);
        s->ih = s->iw = s->oh = s->ow = 1;
        s->kh = s->kw = s->sh = s->sw = s->dh = s->dw = 1;
        s->pt = s->pl = 0;
    }
}

static const float *tensor_of(const mh_model *m, uint16_t param, uint32_t at) {
    if (param != MH_NONE16) return mh_model_weight(m, param);
    return at == MH_NONE32 ? 0 : (const void *)(m->blob + at);
}

static void forward_f32(const mh_model *m, const mh_plan *p, const mh_layer *l) {
    const float *x = mh_model_value(m, p, l->in0);
    float *y = mh_model_value(m, p, l->out);
    const float *w = tensor_of(m, l->weight, l->weight_at), *b = tensor_of(m, l->bias, l->bias_at);
    const mh_value *in = &m->values[l->in0], *out = &m->values[l->out];
    uint32_t n = mh_value_elements(out);
    mh_geometry s;
    geometry_of(m, l, &s);
    switch (l->kind) {
    case MH_DENSE:
        mh_dense_f32(x, w, b, y, mh_value_elements(in), out->c);
        break;
    case MH_CONV:
        mh_conv_f32(&s, x, w, b, y);
        break;
    case MH_DEPTHWISE:
        mh_depthwise_f32(&s, x, w, b, y);
        break;
    case MH_MAX_POOL:
        mh_max_pool_f32(&s, x, y);
        break;
    case MH_AVERAGE_POOL:
        mh_average_pool_f32(&s, x, y);
        break;
    case MH_CLAMP:
        mh_clamp_f32(x, y, n, l->low, l->high);
        break;
    case MH_ADD:
        mh_add_f32(x, mh_model_value(m, p, l->in1), y, n);
        break;
    case MH_GROUP_NORM:
        mh_group_norm_f32(x, w, b, y, in->c, (uint32_t)in->h * in->w, l->groups, l->eps);
        break;
    default: /* MH_RESHAPE: the same bytes */
        break;
    }
    if (l->rank) {
        lora_geometry_of(m, l, &s);
        mh_lora_f32(&s, x, tensor_of(m, l->lora_a, l->lora_a_at), tensor_of(m, l->lora_b, l->lora_b_at), y, l->rank,
                    l->lora_scale, floats_at(m, p->scratch_offset));
    }
    if ((l->flags & MH_HAS_CLAMP) && l->kind != MH_CLAMP) mh_clamp_f32(y, y, n, l->low, l->high);
}

static void forward_s8(const mh_model *m, const mh_plan *p, const mh_layer *l) {
    const int8_t *x = mh_model_value(m, p, l->in0);
    int8_t *y = mh_model_value(m, p, l->out);
    const mh_value *in = &m->values[l->in0], *out = &m->values[l->out];
    const int8_t *w = (const void *)(m->blob + l->weight_at);
    const void *table = m->blob + l->requant_at;
    void *scratch = p->scratch_bytes ? m->arena + p->scratch_offset : 0;
    mh_range_s8 range;
    mh_geometry s;
    range.in_zero = in->zero_point, range.out_zero = out->zero_point;
    range.low = l->qlow, range.high = l->qhigh;
    geometry_of(m, l, &s);
    switch (l->kind) {
    case MH_DENSE:
        mh_dense_s8(x, w, table, y, mh_value_elements(in), out->c, &range, scratch);
        break;
    case MH_CONV:
        mh_conv_s8(&s, x, w, table, y, &range, scratch);
        break;
    case MH_DEPTHWISE:
        mh_depthwise_s8(&s, x, w, table, y, &range, scratch);
        break;
    case MH_MAX_POOL:
        mh_max_pool_s8(&s, x, y, l->qlow, l->qhigh);
        break;
    case MH_AVERAGE_POOL:
        mh_average_pool_s8(&s, x, y, l->qlow, l->qhigh);
        break;
    default: /* MH_ADD */
        mh_add_s8(x, mh_model_value(m, p, l->in1), table, y, mh_value_elements(out), &range);
        break;
    }
}

void mh_model_forward(const mh_model *m, const mh_plan *p) {
    const uint8_t *steps = m->blob + p->steps_at;
    uint32_t i;
    for (i = 0; i < m->head->num_layers; i++) {
        const mh_layer *l = &m->layers[i];
        const mh_value *in = &m->values[l->in0], *out = &m->values[l->out];
        if (!(steps[i] & MH_STEP_FORWARD)) continue;
        if (l->kind == MH_QUANTISE)
            mh_quantise_f32_s8(mh_model_value(m, p, l->in0), mh_model_value(m, p, l->out), out->c, (uint32_t)out->h * out->w,
                               out->scale, out->zero_point, l->qlow, l->qhigh);
        else if (l->kind == MH_DEQUANTISE)
            mh_dequantise_s8_f32(mh_model_value(m, p, l->in0), mh_model_value(m, p, l->out), out->c,
                                 (uint32_t)out->h * out->w, in->scale, in->zero_point);
        else if (out->dtype == MH_S8)
            forward_s8(m, p, l);
        else
            forward_f32(m, p, l);
    }
}

#ifndef MH_INFER_ONLY

float *mh_model_gradient(const mh_model *m, const mh_plan *p) {
    return floats_at(m, words_at(m, p->grads_at)[mh_model_output(m)]);
}

float *mh_model_scratch(const mh_model *m, const mh_plan *p) { return floats_at(m, p->scratch_offset); }

static float *sum_of(const mh_model *m, const mh_plan *p, uint16_t param) {
    if (param == MH_NONE16 || !mh_model_trained(m, p)[param]) return 0;
    return floats_at(m, words_at(m, p->sums_at)[param]);
}

void mh_model_zero_sums(const mh_model *m, const mh_plan *p) {
    uint32_t i;
    for (i = 0; i < m->head->num_params; i++)
        if (mh_model_trained(m, p)[i]) memset(sum_of(m, p, (uint16_t)i), 0, m->params[i].elements * 4);
}

static void backward_matrix(const mh_model *m, const mh_plan *p, const mh_layer *l, uint8_t step, const float *g, float *dx) {
    const float *x = mh_model_value(m, p, l->in0), *w = tensor_of(m, l->weight, l->weight_at);
    float *dw = sum_of(m, p, l->weight), *db = sum_of(m, p, l->bias);
    float *da = sum_of(m, p, l->lora_a), *dlb = sum_of(m, p, l->lora_b);
    uint32_t num_in = mh_value_elements(&m->values[l->in0]), num_out = m->values[l->out].c;
    int adds = (step & MH_STEP_ADDS0) != 0;
    mh_geometry s;
    geometry_of(m, l, &s);
    if (l->kind == MH_DENSE) {
        if (dw || db) mh_dense_params_f32(g, x, dw, db, num_in, num_out);
        if (dx) mh_dense_input_f32(g, w, dx, num_in, num_out, adds);
    } else if (l->kind == MH_CONV) {
        if (dw || db) mh_conv_params_f32(&s, g, x, dw, db);
        if (dx) mh_conv_input_f32(&s, g, w, dx, adds);
    } else {
        if (dw || db) mh_depthwise_params_f32(&s, g, x, dw, db);
        if (dx) mh_depthwise_input_f32(&s, g, w, dx, adds);
    }
    if (l->rank && (da || dlb || dx)) {
        lora_geometry_of(m, l, &s);
        mh_lora_grad_f32(&s, g, x, tensor_of(m, l->lora_a, l->lora_a_at), tensor_of(m, l->lora_b, l->lora_b_at), dx, da, dlb,
                         l->rank, l->lora_scale, floats_at(m, p->scratch_offset));
    }
}

static void backward_layer(const mh_model *m, const mh_plan *p, const mh_layer *l, uint8_t step) {
    const uint32_t *grads = words_at(m, p->grads_at);
    const float *x = mh_model_value(m, p, l->in0), *y = mh_model_value(m, p, l->out);
    float *g = floats_at(m, grads[l->out]);
    float *dx = (step & MH_STEP_GRAD_INPUT0) ? floats_at(m, grads[l->in0]) : 0;
    float *dx1 = (step & MH_STEP_GRAD_INPUT1) ? floats_at(m, grads[l->in1]) : 0;
    const mh_value *in = &m->values[l->in0];
    uint32_t n = mh_value_elements(&m->values[l->out]);
    int adds = (step & MH_STEP_ADDS0) != 0;
    mh_geometry s;
    geometry_of(m, l, &s);
    if ((l->flags & MH_HAS_CLAMP) && l->kind != MH_CLAMP) mh_clamp_grad_f32(y, g, g, n, l->low, l->high, 0);
    switch (l->kind) {
    case MH_DENSE:
    case MH_CONV:
    case MH_DEPTHWISE:
        backward_matrix(m, p, l, step, g, dx);
        break;
    case MH_MAX_POOL:
        if (dx) mh_max_pool_input_f32(&s, g, x, dx, adds);
        break;
    case MH_AVERAGE_POOL:
        if (dx) mh_average_pool_input_f32(&s, g, dx, adds);
        break;
    case MH_CLAMP:
        if (dx) mh_clamp_grad_f32(y, g, dx, n, l->low, l->high, adds);
        break;
    case MH_GROUP_NORM:
        mh_group_norm_grad_f32(x, tensor_of(m, l->weight, l->weight_at), g, dx, sum_of(m, p, l->weight),
                               sum_of(m, p, l->bias), in->c, (uint32_t)in->h * in->w, l->groups, l->eps, adds);
        break;
    default: /* MH_ADD and MH_RESHAPE hand it on; where the plan has both in one buffer it is there already */
        if (dx && dx != g) mh_copy_f32(g, dx, n, adds);
        if (dx1 && dx1 != g) mh_copy_f32(g, dx1, n, (step & MH_STEP_ADDS1) != 0);
        break;
    }
}

void mh_model_backward(const mh_model *m, const mh_plan *p) {
    const uint8_t *steps = m->blob + p->steps_at;
    uint32_t i;
    for (i = m->head->num_layers; i-- > 0;)
        if (steps[i] & (MH_STEP_GRAD_INPUT0 | MH_STEP_GRAD_INPUT1 | MH_STEP_GRAD_PARAMS))
            backward_layer(m, p, &m->layers[i], steps[i]);
}

void mh_model_step(const mh_model *m, const mh_plan *p, const mh_sgd *how) {
    uint32_t i;
    for (i = 0; i < m->head->num_params; i++)
        if (mh_model_trained(m, p)[i])
            mh_sgd_f32(mh_model_weight(m, i), sum_of(m, p, (uint16_t)i), mh_model_velocity(m, i), mh_model_start(m, i),
                       m->params[i].elements, how->lr, how->momentum, how->decay, how->mu);
}

#endif
