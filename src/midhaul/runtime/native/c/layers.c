#include "kernel.h"

/* The slope at what an activation gave `y` for. NaN passes, as in torch. */
MK_INLINE vf through(vf slope, vf y, int act)
{
    if (act == MK_RELU || act == MK_RELU6)
        slope = choose(y <= 0.0f, (vf){0}, slope);
    if (act == MK_RELU6)
        slope = choose(y >= 6.0f, (vf){0}, slope);
    return slope;
}

static float *input(const mk_thread *t, int64_t layer, int64_t image)
{
    const mk_place *p = &t->run->places[layer];
    return t->memory + p->in + image * p->image + p->inside;
}

static float *slope_at(const mk_thread *t, int64_t layer, int64_t image)
{
    const mk_place *p = &t->run->places[layer];
    return t->memory + p->slope + image * p->image + p->inside;
}

/* The part of a window that lies within the image: from `low` to `high`. */
MK_INLINE void window(int32_t place, int32_t stride, int32_t pad, int32_t kernel, int32_t size, int32_t *low,
                      int32_t *high)
{
    int32_t from = place * stride - pad;
    *low = from < 0 ? 0 : from;
    *high = from + kernel < size ? from + kernel : size;
}

void mk_pool_forward(mk_thread *t, int64_t layer, int64_t image, const float *mid)
{
    const mk_layer *l = &t->run->job->layers[layer];
    const mk_place *p = &t->run->places[layer], *q = p + 1;
    float *to = input(t, layer + 1, image);
    int64_t channels = l->out_c;
    uint8_t *picks = (uint8_t *)(t->memory + p->picks) + image * l->end_h * l->end_w * rounded(channels);
    float share = 1.0f / (float)(l->pool_h * l->pool_w);
    for (int32_t y = 0; y < l->end_h; y++)
        for (int32_t x = 0; x < l->end_w; x++) {
            int32_t y0, y1, x0, x1;
            window(y, l->pool_stride_h, l->pool_pad_h, l->pool_h, l->out_h, &y0, &y1);
            window(x, l->pool_stride_w, l->pool_pad_w, l->pool_w, l->out_w, &x0, &x1);
            float *out = to + y * q->row + x * channels;
            for (int64_t c = 0; c < channels; c += MK_LANES) {
                int num = mk_lanes(channels, c);
                vf best = load(mid + (y0 * l->out_w + x0) * p->mid + c), sum = {0};
                vi at = {0}, number = {0};
                for (int32_t i = y0; i < y1; i++)
                    for (int32_t j = x0; j < x1; j++, number += 1) {
                        vf v = load(mid + (i * l->out_w + j) * p->mid + c);
                        if (l->pool == MK_MEAN) {
                            sum += v;
                        } else {
                            vi more = (v > best) | (v != v);
                            best = choose(more, v, best);
                            at = (number & more) | (at & ~more);
                        }
                    }
                if (l->pool == MK_MEAN) {
                    store_first(out + c, sum * share, num);
                    continue;
                }
                store_first(out + c, best, num);
                for (int n = 0; n < MK_LANES; n++)
                    picks[c + n] = (uint8_t)at[n];
            }
            picks += rounded(channels);
        }
}

void mk_pool_backward(mk_thread *t, int64_t layer, int64_t image, float *mid)
{
    const mk_layer *l = &t->run->job->layers[layer];
    const mk_place *p = &t->run->places[layer], *q = p + 1;
    const float *slope = slope_at(t, layer + 1, image), *y_out = input(t, layer + 1, image);
    int64_t channels = l->out_c, wide = rounded(channels);
    const uint8_t *picks = (const uint8_t *)(t->memory + p->picks) + image * l->end_h * l->end_w * wide;
    float share = 1.0f / (float)(l->pool_h * l->pool_w);
    if (l->pool != MK_NO_POOL)
        memset(mid, 0, (size_t)(l->out_h * l->out_w * p->mid) * sizeof(float));
    for (int32_t y = 0; y < l->end_h; y++)
        for (int32_t x = 0; x < l->end_w; x++) {
            const float *g = slope + y * q->row + x * channels, *out = y_out + y * q->row + x * channels;
            if (l->pool == MK_NO_POOL) {
                float *to = mid + (y * l->out_w + x) * p->mid;
                for (int64_t c = 0; c < channels; c += MK_LANES) {
                    int num = mk_lanes(channels, c);
                    store(to + c, through(load_first(g + c, num), load_first(out + c, num), l->act));
                }
                continue;
            }
            int32_t y0, y1, x0, x1;
            window(y, l->pool_stride_h, l->pool_pad_h, l->pool_h, l->out_h, &y0, &y1);
            window(x, l->pool_stride_w, l->pool_pad_w, l->pool_w, l->out_w, &x0, &x1);
            for (int64_t c = 0; c < channels; c += MK_LANES) {
                int num = mk_lanes(channels, c);
                vf v = through(load_first(g + c, num), load_first(out + c, num), l->act);
                vi at = {0}, number = {0};
                if (l->pool == MK_MEAN)
                    v *= share;
                else
                    for (int n = 0; n < MK_LANES; n++)
                        at[n] = picks[c + n];
                for (int32_t i = y0; i < y1; i++)
                    for (int32_t j = x0; j < x1; j++, number += 1) {
                        float *to = mid + (i * l->out_w + j) * p->mid + c;
                        store(to, load(to) + (l->pool == MK_MEAN ? v : choose(number == at, v, (vf){0})));
                    }
            }
            picks += wide;
        }
}

static void conv_forward(mk_thread *t, int64_t layer, int64_t image)
{
    const mk_layer *l = &t->run->job->layers[layer];
    const mk_place *p = &t->run->places[layer], *q = p + 1;
    const float *w = t->memory + t->run->weights + t->run->offset[l->weight];
    const float *from = t->memory + p->in + image * p->image;
    float *mid = t->memory + t->run->scratch, *to = l->pool ? mid : input(t, layer + 1, image);
    int64_t step = l->pool ? p->mid : l->out_c, row = l->pool ? l->out_w * p->mid : q->row;
    for (int64_t y = 0, m = 0; y < l->out_h; y++)
        for (int64_t x = 0; x < l->out_w; x++, m++) {
            t->a[m] = from + y * l->stride_h * p->row + x * l->stride_w * l->in_c;
            t->c[m] = to + y * row + x * step;
        }
    mk_product work = {.rows = l->out_h * l->out_w, .columns = l->pool ? p->ldw : l->out_c, .segments = p->segments,
                       .depth = p->depth, .step = p->row, .ldb = p->ldw, .b = w, .mode = l->act};
    work.bias = l->bias < 0 ? NULL : t->memory + t->run->weights + t->run->offset[l->bias];
    mk_product_f32(&work, t->a, t->c);
    if (l->pool)
        mk_pool_forward(t, layer, image, mid);
}

static void dense_forward(mk_thread *t, int64_t layer, int64_t num)
{
    const mk_layer *l = &t->run->job->layers[layer];
    const mk_place *p = &t->run->places[layer];
    for (int64_t m = 0; m < num; m++) {
        t->a[m] = input(t, layer, m);
        t->c[m] = input(t, layer + 1, m);
    }
    mk_product work = {.rows = num, .columns = l->out_c, .segments = 1, .depth = p->depth, .ldb = p->ldw,
                       .b = t->memory + t->run->weights + t->run->offset[l->weight], .mode = l->act};
    work.bias = l->bias < 0 ? NULL : t->memory + t->run->weights + t->run->offset[l->bias];
    mk_product_f32(&work, t->a, t->c);
}

/* An activation, a pool or both, of an image without padding. */
static void plain_forward(mk_thread *t, int64_t layer, int64_t image)
{
    const mk_layer *l = &t->run->job->layers[layer];
    const mk_place *p = &t->run->places[layer], *q = p + 1;
    const float *from = input(t, layer, image);
    float *mid = t->memory + t->run->scratch, *to = l->pool ? mid : input(t, layer + 1, image);
    int64_t step = l->pool ? p->mid : l->out_c, row = l->pool ? l->out_w * p->mid : q->row;
    for (int64_t y = 0; y < l->out_h; y++)
        for (int64_t x = 0; x < l->out_w; x++)
            for (int64_t c = 0; c < l->out_c; c += MK_LANES) {
                int num = mk_lanes(l->out_c, c);
                vf v = load_first(from + y * p->row + x * l->in_c + c, num);
                store_first(to + y * row + x * step + c, mk_activated(v, l->act), num);
            }
    if (l->pool)
        mk_pool_forward(t, layer, image, mid);
}

static void bias_backward(const float *g, int64_t places, int64_t width, int64_t step, float *to)
{
    for (int64_t c = 0; c < width; c += MK_LANES) {
        vf sum = {0};
        for (int64_t m = 0; m < places; m++)
            sum += load(g + m * step + c);
        store(to + c, load(to + c) + sum);
    }
}

static void turn(mk_thread *t, int64_t layer, const float *w)
{
    const mk_layer *l = &t->run->job->layers[layer];
    const mk_place *p = &t->run->places[layer];
    if (t->stale) /* with the zeros behind the last column, over which the next segment is written */
        for (int64_t s = 0; s < p->segments; s++)
            mk_transpose_f32(w + s * p->depth * p->ldw, p->depth, (l->out_c + 3) / 4 * 4, p->ldw,
                             t->memory + p->back + s * l->out_c * p->ldt, p->ldt);
}

static void conv_backward(mk_thread *t, int64_t layer, int64_t image)
{
    const mk_run *r = t->run;
    const mk_layer *l = &r->job->layers[layer];
    const mk_place *p = &r->places[layer];
    float *mid = t->memory + r->scratch, *gradient = t->memory + r->gradient;
    int64_t places = l->out_h * l->out_w;
    mk_pool_backward(t, layer, image, mid);
    if (l->bias >= 0 && r->job->parameters[l->bias].trained)
        bias_backward(mid, places, p->ldw, p->mid, gradient + r->offset[l->bias]);
    if (l->kind == MK_DEPTHWISE) {
        mk_depthwise_backward(t, layer, image, mid);
        return;
    }
    if (r->job->parameters[l->weight].trained) {
        mk_outer work = {.num_k = p->segments * p->depth, .ldw = p->ldw, .rows = l->out_h, .columns = l->out_w,
                         .a_row = l->stride_h * p->row, .a_column = l->stride_w * l->in_c,
                         .g_row = l->out_w * p->mid, .g_column = p->mid, .offsets = r->taps + r->tap_start[layer]};
        mk_outer_f32(&work, t->memory + p->in + image * p->image, mid, gradient + r->offset[l->weight]);
    }
    if (layer == r->lowest)
        return;
    float *to = t->memory + p->slope + image * p->image;
    memset(to, 0, (size_t)p->image * sizeof(float));
    for (int64_t s = 0; s < p->segments; s++) {
        for (int64_t y = 0, m = 0; y < l->out_h; y++)
            for (int64_t x = 0; x < l->out_w; x++, m++) {
                t->a[m] = mid + m * p->mid;
                t->c[m] = to + (y * l->stride_h + s) * p->row + x * l->stride_w * l->in_c;
            }
        mk_product work = {.rows = places, .columns = p->depth, .segments = 1, .depth = l->out_c, .ldb = p->ldt,
                           .b = t->memory + p->back + s * l->out_c * p->ldt, .mode = MK_ADD};
        mk_product_f32(&work, t->a, t->c);
    }
}

static void dense_backward(mk_thread *t, int64_t layer, int64_t num)
{
    const mk_run *r = t->run;
    const mk_layer *l = &r->job->layers[layer];
    const mk_place *p = &r->places[layer], *q = p + 1;
    float *w = t->memory + r->weights + r->offset[l->weight], *gradient = t->memory + r->gradient;
    float *g = slope_at(t, layer + 1, 0);
    if (l->act)
        for (int64_t m = 0; m < num; m++)
            for (int64_t c = 0; c < p->ldw; c += MK_LANES) {
                float *at = g + m * q->image + c;
                store(at, through(load(at), load(input(t, layer + 1, m) + c), l->act));
            }
    if (l->bias >= 0 && r->job->parameters[l->bias].trained)
        bias_backward(g, num, p->ldw, q->image, gradient + r->offset[l->bias]);
    if (layer != r->lowest) {
        for (int64_t m = 0; m < num; m++) {
            t->a[m] = g + m * q->image;
            t->c[m] = slope_at(t, layer, m);
        }
        mk_product work = {.rows = num, .columns = p->depth, .segments = 1, .depth = l->out_c, .ldb = p->ldt,
                           .b = t->memory + p->back, .mode = MK_STORE};
        mk_product_f32(&work, t->a, t->c);
    }
    if (r->job->parameters[l->weight].trained) {
        mk_outer work = {.num_k = p->depth, .ldw = p->ldw, .rows = 1, .columns = num, .a_column = p->image,
                         .g_column = q->image, .offsets = r->taps + r->tap_start[layer],
                         .rate = t->fused ? r->job->lr : 0.0f};
        mk_outer_f32(&work, input(t, layer, 0), g, t->fused ? w : gradient + r->offset[l->weight]);
    }
}

/* The image that a plain layer takes may be padded by none but itself, so its slope is written whole. */
static void plain_backward(mk_thread *t, int64_t layer, int64_t image)
{
    const mk_layer *l = &t->run->job->layers[layer];
    const mk_place *p = &t->run->places[layer];
    float *mid = t->memory + t->run->scratch, *to = slope_at(t, layer, image);
    if (layer == t->run->lowest)
        return;
    mk_pool_backward(t, layer, image, mid);
    for (int64_t y = 0; y < l->out_h; y++)
        for (int64_t x = 0; x < l->out_w; x++)
            for (int64_t c = 0; c < l->out_c; c += MK_LANES)
                store_first(to + y * p->row + x * l->in_c + c, load(mid + (y * l->out_w + x) * p->mid + c),
                            mk_lanes(l->out_c, c));
}

typedef void pass(mk_thread *t, int64_t layer, int64_t rows);

void mk_layer_pass(mk_thread *t, int64_t layer, int64_t num, int back)
{
    static pass *const dense[2] = {dense_forward, dense_backward}, *const norm[2] = {mk_norm_forward, mk_norm_backward};
    static pass *const of_image[][2] = {[MK_CONV] = {conv_forward, conv_backward},
                                        [MK_DEPTHWISE] = {mk_depthwise_forward, conv_backward},
                                        [MK_PLAIN] = {plain_forward, plain_backward},
                                        [MK_GROUP] = {mk_group_forward, mk_group_backward}};
    const mk_run *r = t->run;
    const mk_layer *l = &r->job->layers[layer];
    if (back && l->kind == MK_CONV && layer != r->lowest)
        turn(t, layer, t->memory + r->weights + r->offset[l->weight]);
    if (r->places[layer].dense)
        dense[back](t, layer, num);
    else if (l->kind == MK_NORM)
        norm[back](t, layer, num);
    else
        for (int64_t image = 0; image < num; image++)
            of_image[l->kind][back](t, layer, image);
}
