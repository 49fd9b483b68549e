#include "kernel.h"

/* A convolution of each channel by itself: lanes are channels, and a weight lies as [taps][channels]. */

void mk_depthwise_forward(mk_thread *t, int64_t layer, int64_t image)
{
    const mk_run *r = t->run;
    const mk_layer *l = &r->job->layers[layer];
    const mk_place *p = &r->places[layer], *q = p + 1;
    const float *w = t->memory + r->weights + r->offset[l->weight];
    const float *bias = l->bias < 0 ? NULL : t->memory + r->weights + r->offset[l->bias];
    const float *from = t->memory + p->in + image * p->image;
    float *mid = t->memory + r->scratch, *to = l->pool ? mid : t->memory + q->in + image * q->image + q->inside;
    int64_t step = l->pool ? p->mid : l->out_c, row = l->pool ? l->out_w * p->mid : q->row;
    for (int64_t y = 0; y < l->out_h; y++)
        for (int64_t x = 0; x < l->out_w; x++)
            for (int64_t c = 0; c < l->out_c; c += MK_LANES) {
                const float *at = from + y * l->stride_h * p->row + x * l->stride_w * l->in_c + c, *tap = w + c;
                vf sum = bias ? load(bias + c) : (vf){0};
                for (int64_t i = 0; i < l->kernel_h; i++)
                    for (int64_t j = 0; j < l->kernel_w; j++, tap += p->ldw)
                        sum += load(at + i * p->row + j * l->in_c) * load(tap);
                store_first(to + y * row + x * step + c, mk_activated(sum, l->act), mk_lanes(l->out_c, c));
            }
    if (l->pool)
        mk_pool_forward(t, layer, image, mid);
}

/* `mid` is the slope at the output, [out_h * out_w][p->mid]. */
void mk_depthwise_backward(mk_thread *t, int64_t layer, int64_t image, const float *mid)
{
    const mk_run *r = t->run;
    const mk_layer *l = &r->job->layers[layer];
    const mk_place *p = &r->places[layer];
    const float *w = t->memory + r->weights + r->offset[l->weight], *from = t->memory + p->in + image * p->image;
    float *gradient = t->memory + r->gradient + r->offset[l->weight];
    for (int64_t i = 0; i < l->kernel_h && r->job->parameters[l->weight].trained; i++)
        for (int64_t j = 0; j < l->kernel_w; j++)
            for (int64_t c = 0; c < l->out_c; c += MK_LANES) {
                float *to = gradient + (i * l->kernel_w + j) * p->ldw + c;
                int lanes = mk_lanes(l->out_c, c);
                vf sum = {0};
                for (int64_t y = 0; y < l->out_h; y++) {
                    const float *at = from + (y * l->stride_h + i) * p->row + j * l->in_c + c;
                    const float *g = mid + y * l->out_w * p->mid + c;
                    vf of_row = {0};
                    for (int64_t x = 0; x < l->out_w; x++)
                        of_row += load_first(at + x * l->stride_w * l->in_c, lanes) * load(g + x * p->mid);
                    sum += of_row;
                }
                store(to, load(to) + sum);
            }
    if (layer == r->lowest)
        return;
    float *to = t->memory + p->slope + image * p->image;
    memset(to, 0, (size_t)p->image * sizeof(float));
    for (int64_t y = 0; y < l->out_h; y++)
        for (int64_t x = 0; x < l->out_w; x++)
            for (int64_t c = 0; c < l->out_c; c += MK_LANES) {
                float *at = to + y * l->stride_h * p->row + x * l->stride_w * l->in_c + c;
                int lanes = mk_lanes(l->out_c, c);
                vf g = load(mid + (y * l->out_w + x) * p->mid + c);
                const float *tap = w + c;
                for (int64_t i = 0; i < l->kernel_h; i++)
                    for (int64_t j = 0; j < l->kernel_w; j++, tap += p->ldw) {
                        float *here = at + i * p->row + j * l->in_c;
                        store_first(here, load_first(here, lanes) + g * load(tap), lanes);
                    }
            }
}
