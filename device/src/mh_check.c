/* The check of a blob: every offset, count and shape, once, so that nothing has to look again. */
#include <string.h>

#include "mh_crc32.h"
#include "mh_model.h"
#include "mh_s8.h"

#define MAX_ELEMENTS (1u << 24) /* of a value or a tensor: no product of two sizes leaves 64 bits, none of bytes 32 */

typedef struct {
    const uint8_t *blob;
    const mh_blob *head;
    const mh_value *values;
    const mh_layer *layers;
    const mh_param *params;
} view;

static int within(const view *v, uint32_t at, uint64_t bytes) {
    if (bytes == 0) return 1;
    return at % 4 == 0 && at <= v->head->total_bytes && bytes <= v->head->total_bytes - at;
}

static uint64_t count(const mh_value *v) { return (uint64_t)v->c * v->h * v->w; }

static uint64_t value_bytes(const mh_value *v) { return v->dtype == MH_S8 ? count(v) : count(v) * 4; }

static int is_finite(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits & 0x7f800000u) != 0x7f800000u;
}

static int value_is_sound(const mh_value *v) {
    /* w and h are 16 bits each, so h * w fits into 32 and the whole into 48. */
    if (count(v) == 0 || count(v) > MAX_ELEMENTS) return 0;
    if (v->dtype == MH_F32) return v->layout == MH_CHW;
    return v->dtype == MH_S8 && v->layout == MH_HWC && is_finite(v->scale) && v->scale > 0.0f && v->zero_point >= -128 &&
           v->zero_point <= 127;
}

static int same_shape(const mh_value *a, const mh_value *b) { return a->c == b->c && a->h == b->h && a->w == b->w; }

static int axis_fits(uint32_t in, uint32_t out, uint32_t k, uint32_t stride, uint32_t dilation, uint32_t before,
                     uint32_t after) {
    uint32_t reach;
    if (k == 0 || stride == 0 || dilation == 0) return 0;
    reach = dilation * (k - 1) + 1;
    return in + before + after >= reach && (in + before + after - reach) / stride + 1 == out;
}

/* Whether each window has a tap inside: a pool over none would divide by 0. */
static int axis_has_taps(uint32_t in, uint32_t out, uint32_t k, uint32_t stride, uint32_t dilation, uint32_t before) {
    uint32_t o, i;
    for (o = 0; o < out; o++) {
        int found = 0;
        for (i = 0; i < k; i++) {
            uint32_t at = o * stride + i * dilation;
            found |= at >= before && at - before < in;
        }
        if (!found) return 0;
    }
    return 1;
}

static int window_fits(const mh_layer *l, const mh_value *in, const mh_value *out) {
    return axis_fits(in->h, out->h, l->kh, l->sh, l->dh, l->pt, l->pb) &&
           axis_fits(in->w, out->w, l->kw, l->sw, l->dw, l->pl, l->pr);
}

/* A float tensor of a layer: trained, or frozen, or (where it may be) absent. */
static int tensor_is_sound(const view *v, uint16_t param, uint32_t at, uint64_t elements, int optional) {
    if (param != MH_NONE16) return at == MH_NONE32 && param < v->head->num_params && v->params[param].elements == elements;
    if (at == MH_NONE32) return optional;
    return elements <= MAX_ELEMENTS && within(v, at, elements * 4);
}

static int has_no_tensors(const mh_layer *l) {
    return l->weight == MH_NONE16 && l->bias == MH_NONE16 && l->lora_a == MH_NONE16 && l->lora_b == MH_NONE16;
}

static void geometry_of(const view *v, const mh_layer *l, mh_geometry *s) {
    const mh_value *in = &v->values[l->in0], *out = &v->values[l->out];
    s->ic = in->c, s->ih = in->h, s->iw = in->w, s->oc = out->c, s->oh = out->h, s->ow = out->w;
    s->kh = l->kh, s->kw = l->kw, s->sh = l->sh, s->sw = l->sw, s->pt = l->pt, s->pl = l->pl, s->dh = l->dh, s->dw = l->dw;
    s->groups = l->groups;
}

static int lora_is_sound(const view *v, const mh_layer *l, uint64_t num_in, uint64_t num_out) {
    if (l->rank == 0)
        return l->lora_a == MH_NONE16 && l->lora_b == MH_NONE16 && l->lora_a_at == MH_NONE32 && l->lora_b_at == MH_NONE32;
    return num_in <= 0xffff && tensor_is_sound(v, l->lora_a, l->lora_a_at, num_in * l->rank, 0) &&
           tensor_is_sound(v, l->lora_b, l->lora_b_at, num_out * l->rank, 0);
}

static int matrix_is_sound(const view *v, const mh_layer *l, const mh_value *in, const mh_value *out) {
    uint64_t weights;
    mh_sizes_s8 sizes;
    mh_geometry s;
    if (in->dtype != out->dtype) return 0;
    if (l->kind == MH_DENSE) {
        if (out->h != 1 || out->w != 1) return 0;
        weights = count(in) * out->c;
    } else {
        if (!window_fits(l, in, out)) return 0;
        if (l->kind == MH_CONV ? l->groups != 1 : l->groups != in->c || out->c % in->c != 0) return 0;
        weights = (uint64_t)out->c * (l->kind == MH_CONV ? in->c : 1u) * l->kh * l->kw;
    }
    if (weights > MAX_ELEMENTS) return 0;
    if (in->dtype == MH_F32) {
        int takes_lora = l->kind == MH_DENSE || (l->kind == MH_CONV && l->kh == 1 && l->kw == 1 && !l->pt && !l->pl &&
                                                 !l->pb && !l->pr);
        if (l->rank != 0 && !takes_lora) return 0;
        return tensor_is_sound(v, l->weight, l->weight_at, weights, 0) &&
               tensor_is_sound(v, l->bias, l->bias_at, out->c, 1) &&
               lora_is_sound(v, l, l->kind == MH_DENSE ? count(in) : in->c, out->c);
    }
    if (l->rank != 0 || !has_no_tensors(l)) return 0;
    geometry_of(v, l, &s);
    if (l->kind == MH_DENSE)
        mh_dense_sizes_s8((uint32_t)count(in), out->c, &sizes);
    else if (l->kind == MH_CONV)
        mh_conv_sizes_s8(&s, &sizes);
    else
        mh_depthwise_sizes_s8(&s, &sizes);
    return sizes.weight_bytes != MH_NONE32 && sizes.requant_bytes != MH_NONE32 && within(v, l->weight_at, sizes.weight_bytes) &&
           within(v, l->requant_at, sizes.requant_bytes);
}

static int layer_is_sound(const view *v, const mh_layer *l) {
    const mh_value *in, *out;
    if (l->in0 >= v->head->num_values || l->out >= v->head->num_values || l->in0 == l->out) return 0;
    if ((l->flags & ~MH_HAS_CLAMP) || l->qlow > l->qhigh) return 0;
    if (l->kind == MH_ADD ? l->in1 >= v->head->num_values || l->in1 == l->out : l->in1 != MH_NONE16) return 0;
    in = &v->values[l->in0], out = &v->values[l->out];
    switch (l->kind) {
    case MH_DENSE:
    case MH_CONV:
    case MH_DEPTHWISE:
        return matrix_is_sound(v, l, in, out);
    case MH_MAX_POOL:
    case MH_AVERAGE_POOL:
        return l->flags == 0 && has_no_tensors(l) && in->dtype == out->dtype && in->c == out->c && window_fits(l, in, out) &&
               axis_has_taps(in->h, out->h, l->kh, l->sh, l->dh, l->pt) &&
               axis_has_taps(in->w, out->w, l->kw, l->sw, l->dw, l->pl);
    case MH_CLAMP:
        return has_no_tensors(l) && in->dtype == MH_F32 && out->dtype == MH_F32 && same_shape(in, out);
    case MH_ADD:
        if (!has_no_tensors(l) || in->dtype != out->dtype || !same_shape(in, out)) return 0;
        if (v->values[l->in1].dtype != out->dtype || !same_shape(&v->values[l->in1], out)) return 0;
        return out->dtype == MH_F32 || within(v, l->requant_at, sizeof(mh_add_table_s8));
    case MH_GROUP_NORM:
        return in->dtype == MH_F32 && out->dtype == MH_F32 && same_shape(in, out) && l->groups != 0 &&
               in->c % l->groups == 0 && l->rank == 0 && l->lora_a == MH_NONE16 && l->lora_b == MH_NONE16 &&
               tensor_is_sound(v, l->weight, l->weight_at, in->c, 1) && tensor_is_sound(v, l->bias, l->bias_at, in->c, 1);
    case MH_RESHAPE:
        return l->flags == 0 && has_no_tensors(l) && in->dtype == MH_F32 && out->dtype == MH_F32 && count(in) == count(out);
    case MH_QUANTISE:
        return l->flags == 0 && has_no_tensors(l) && in->dtype == MH_F32 && out->dtype == MH_S8 && same_shape(in, out);
    case MH_DEQUANTISE:
        return l->flags == 0 && has_no_tensors(l) && in->dtype == MH_S8 && out->dtype == MH_F32 && same_shape(in, out);
    default:
        return 0;
    }
}

/* Each value but the input is made once, by a layer before those that read it. */
static int order_is_sound(const view *v) {
    uint32_t i, j;
    for (i = 0; i < v->head->num_layers; i++) {
        const mh_layer *l = &v->layers[i];
        int has0 = l->in0 == 0, has1 = l->in1 == MH_NONE16 || l->in1 == 0;
        if (l->out == 0) return 0;
        for (j = 0; j < i; j++) {
            if (v->layers[j].out == l->out) return 0;
            has0 |= v->layers[j].out == l->in0;
            has1 |= v->layers[j].out == l->in1;
        }
        if (!has0 || !has1) return 0;
    }
    return 1;
}

static int param_is_sound(const view *v, const mh_param *p) {
    uint64_t elements = 1;
    uint32_t i, at[3];
    if (p->ndim > 4) return 0;
    for (i = 0; i < p->ndim; i++) {
        elements *= p->shape[i];
        if (elements > MAX_ELEMENTS) return 0;
    }
    if (elements == 0 || elements != p->elements || !within(v, p->initial_at, elements * 4)) return 0;
    at[0] = p->weight_offset, at[1] = p->velocity_offset, at[2] = p->start_offset;
    for (i = 0; i < 3; i++) {
        if (at[i] == MH_NONE32 && i > 0) continue;
        if (at[i] % 16 != 0 || at[i] > v->head->persist_bytes || elements * 4 > v->head->persist_bytes - at[i]) return 0;
    }
    return 1;
}

static int lies_in(const view *v, const mh_plan *p, uint32_t offset, uint64_t bytes) {
    return offset % 16 == 0 && offset >= v->head->persist_bytes && offset <= p->arena_bytes &&
           bytes <= p->arena_bytes - offset;
}

static uint64_t scratch_of(const view *v, const mh_layer *l, uint8_t step) {
    const mh_value *in = &v->values[l->in0], *out = &v->values[l->out];
    mh_sizes_s8 sizes;
    mh_geometry s;
    if (out->dtype == MH_F32)
        return (uint64_t)4 * l->rank * out->h * out->w * ((step & ~MH_STEP_FORWARD) ? 2u : 1u);
    sizes.scratch_bytes = 0;
    geometry_of(v, l, &s);
    if (l->kind == MH_DENSE) mh_dense_sizes_s8((uint32_t)count(in), out->c, &sizes);
    if (l->kind == MH_CONV) mh_conv_sizes_s8(&s, &sizes);
    if (l->kind == MH_DEPTHWISE) mh_depthwise_sizes_s8(&s, &sizes);
    return sizes.scratch_bytes;
}

static int grads_are_sound(const view *v, const mh_plan *p, const mh_layer *l, uint8_t step, const uint32_t *grads) {
    const mh_value *in = &v->values[l->in0], *out = &v->values[l->out];
    if (p->kind != MH_PLAN_TRAIN && p->kind != MH_PLAN_BACKWARD) return 0;
    if (out->dtype != MH_F32 || in->dtype != MH_F32) return 0;
    if (!lies_in(v, p, grads[l->out], count(out) * 4)) return 0;
    if ((step & MH_STEP_GRAD_INPUT0) && !lies_in(v, p, grads[l->in0], count(in) * 4)) return 0;
    if (step & MH_STEP_GRAD_INPUT1)
        return l->kind == MH_ADD && lies_in(v, p, grads[l->in1], count(&v->values[l->in1]) * 4);
    return 1;
}

static int plan_is_sound(const view *v, const mh_plan *p) {
    const uint8_t *steps, *trained;
    const uint32_t *values, *grads, *sums;
    uint32_t i, num_values = v->head->num_values;
    uint16_t first = p->kind == MH_PLAN_STORE ? 0 : v->head->stored_value;
    uint16_t last = p->kind == MH_PLAN_STORE ? v->head->stored_value : v->layers[v->head->num_layers - 1].out;
    uint64_t scratch = 0;
    if (p->kind > MH_PLAN_STORE || p->arena_bytes < v->head->persist_bytes || p->arena_bytes > v->head->arena_bytes) return 0;
    if (p->slice_bytes && !within(v, p->slice_at, p->slice_bytes)) return 0;
    if (!within(v, p->trained_at, v->head->num_params) || !within(v, p->sent_at, v->head->num_params) ||
        !within(v, p->steps_at, v->head->num_layers) || !within(v, p->values_at, (uint64_t)4 * num_values) ||
        !within(v, p->grads_at, (uint64_t)4 * num_values) || !within(v, p->sums_at, (uint64_t)4 * v->head->num_params))
        return 0;
    steps = v->blob + p->steps_at;
    trained = v->blob + p->trained_at;
    values = (const void *)(v->blob + p->values_at);
    grads = (const void *)(v->blob + p->grads_at);
    sums = (const void *)(v->blob + p->sums_at);
    if (p->kind == MH_PLAN_STORE && values[first] == MH_NONE32) { /* rows are quantised as they come */
        const mh_layer *l = &v->layers[0];
        if (l->kind != MH_QUANTISE || l->in0 != first || steps[0] != 0 ||
            !lies_in(v, p, values[l->out], value_bytes(&v->values[l->out])))
            return 0;
    } else if (!lies_in(v, p, values[first], value_bytes(&v->values[first]))) {
        return 0;
    }
    if (!lies_in(v, p, values[last], value_bytes(&v->values[last]))) return 0;
    for (i = 0; i < v->head->num_params; i++)
        if (trained[i] && (p->kind == MH_PLAN_INFER || p->kind == MH_PLAN_STORE ||
                           !lies_in(v, p, sums[i], (uint64_t)4 * v->params[i].elements)))
            return 0;
    for (i = 0; i < v->head->num_layers; i++) {
        const mh_layer *l = &v->layers[i];
        uint64_t needs;
        if (steps[i] == 0) continue;
        if (!(steps[i] & MH_STEP_FORWARD) || steps[i] >= 64) return 0;
        if (!lies_in(v, p, values[l->in0], value_bytes(&v->values[l->in0])) ||
            !lies_in(v, p, values[l->out], value_bytes(&v->values[l->out])) ||
            (l->kind == MH_ADD && !lies_in(v, p, values[l->in1], value_bytes(&v->values[l->in1]))))
            return 0;
        if (l->kind == MH_RESHAPE && values[l->in0] != values[l->out]) return 0;
        if ((steps[i] & ~MH_STEP_FORWARD) && !grads_are_sound(v, p, l, steps[i], grads)) return 0;
        needs = scratch_of(v, l, steps[i]);
        scratch = needs > scratch ? needs : scratch;
    }
    if (p->kind == MH_PLAN_TRAIN || p->kind == MH_PLAN_BACKWARD)
        if (!lies_in(v, p, grads[last], count(&v->values[last]) * 4)) return 0;
    if (p->kind == MH_PLAN_TRAIN) {
        if (v->head->num_classes == 0) return 0;
        scratch = scratch > (uint64_t)8 * v->head->num_classes ? scratch : (uint64_t)8 * v->head->num_classes;
    }
    return scratch <= p->scratch_bytes && (p->scratch_bytes == 0 || lies_in(v, p, p->scratch_offset, p->scratch_bytes));
}

static uint32_t sum_of(const uint8_t *blob, uint32_t bytes) {
    static const uint8_t zero[4] = {0, 0, 0, 0};
    uint32_t crc = mh_crc32(0, blob, 12);
    crc = mh_crc32(crc, zero, 4);
    return mh_crc32(crc, blob + 16, bytes - 16);
}

enum mh_error mh_model_check(const uint8_t *blob, uint32_t bytes, uint32_t arena_bytes) {
    const mh_blob *head = (const void *)blob;
    const mh_plan *plans;
    view v;
    uint32_t i;
    if (bytes < sizeof(mh_blob) || head->magic != MH_BLOB_MAGIC || head->version != MH_BLOB_VERSION ||
        head->header_bytes != sizeof(mh_blob) || head->total_bytes > bytes || head->total_bytes < sizeof(mh_blob) ||
        head->total_bytes % 4 != 0)
        return MH_ERROR_BLOB;
    if (sum_of(blob, head->total_bytes) != head->crc32) return MH_ERROR_BLOB_SUM;
    v.blob = blob, v.head = head;
    if (head->num_values == 0 || head->num_values == MH_NONE16 || head->num_layers == 0 || head->num_plans == 0 ||
        head->num_params > MH_MAX_PARAMS || head->stored_value >= head->num_values || head->persist_bytes % 16 != 0 ||
        head->persist_bytes > head->arena_bytes)
        return MH_ERROR_BLOB;
    if (!within(&v, head->values_at, (uint64_t)sizeof(mh_value) * head->num_values) ||
        !within(&v, head->layers_at, (uint64_t)sizeof(mh_layer) * head->num_layers) ||
        !within(&v, head->params_at, (uint64_t)sizeof(mh_param) * head->num_params) ||
        !within(&v, head->plans_at, (uint64_t)sizeof(mh_plan) * head->num_plans))
        return MH_ERROR_BLOB;
    if (head->arena_bytes > arena_bytes) return MH_ERROR_ARENA;
    v.values = (const void *)(blob + head->values_at);
    v.layers = (const void *)(blob + head->layers_at);
    v.params = (const void *)(blob + head->params_at);
    plans = (const void *)(blob + head->plans_at);
    for (i = 0; i < head->num_values; i++)
        if (!value_is_sound(&v.values[i])) return MH_ERROR_BLOB;
    for (i = 0; i < head->num_params; i++)
        if (!param_is_sound(&v, &v.params[i])) return MH_ERROR_BLOB;
    for (i = 0; i < head->num_layers; i++) {
        const mh_layer *l = &v.layers[i];
        int is_packed = l->kind == MH_DENSE || l->kind == MH_CONV || l->kind == MH_DEPTHWISE;
        if (is_packed && l->out < head->num_values && v.values[l->out].dtype == MH_S8 &&
            head->packing != (uint16_t)mh_packing())
            return MH_ERROR_PACKING;
        if (!layer_is_sound(&v, l)) return MH_ERROR_BLOB;
    }
    if (!order_is_sound(&v)) return MH_ERROR_BLOB;
    {
        const mh_value *last = &v.values[v.layers[head->num_layers - 1].out];
        if (last->dtype != MH_F32 || (head->num_classes != 0 && head->num_classes != count(last))) return MH_ERROR_BLOB;
    }
    for (i = 0; i < head->num_plans; i++)
        if (!plan_is_sound(&v, &plans[i])) return MH_ERROR_BLOB;
    return MH_OK;
}
