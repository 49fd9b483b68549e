#include "kernel.h"

#include <math.h>

/* Group norm (torch.nn.GroupNorm): each image by itself, over all places of a group of channels that lie together. Lanes
   are channels; what is summed over a group is then added up channel by channel, in order. */

/* Replaces the number of each channel by the mean over its group of `places` numbers a channel. */
static void of_groups(const mk_layer *l, float *sums, int64_t places)
{
    int64_t size = l->in_c / l->groups;
    for (int64_t c = 0; c < l->in_c; c += size) {
        float total = 0.0f;
        for (int64_t i = 0; i < size; i++)
            total += sums[c + i];
        for (int64_t i = 0; i < size; i++)
            sums[c + i] = total / (float)(size * places);
    }
}

/* sums[c] = the sum over all places of x - minus[c], squared if `square`. */
static void add_up(const mk_layer *l, const mk_place *p, const float *from, const float *minus, float *sums, int square)
{
    for (int64_t c = 0; c < l->in_c; c += MK_LANES) {
        int lanes = mk_lanes(l->in_c, c);
        vf less = minus ? load(minus + c) : (vf){0}, total = {0};
        for (int64_t y = 0; y < l->in_h; y++) {
            vf of_row = {0};
            for (int64_t x = 0; x < l->in_w; x++) {
                vf v = load_first(from + y * p->row + x * l->in_c + c, lanes) - less;
                of_row += square ? v * v : v;
            }
            total += of_row;
        }
        store(sums + c, total);
    }
}

void mk_group_forward(mk_thread *t, int64_t layer, int64_t image)
{
    const mk_run *r = t->run;
    const mk_layer *l = &r->job->layers[layer];
    const mk_place *p = &r->places[layer], *q = p + 1;
    const float *from = t->memory + p->in + image * p->image;
    float *mean = t->memory + p->moments + image * 2 * p->mid, *scale = mean + p->mid;
    float *mid = t->memory + r->scratch, *to = l->pool ? mid : t->memory + q->in + image * q->image + q->inside;
    int64_t step = l->pool ? p->mid : l->out_c, row = l->pool ? l->out_w * p->mid : q->row;
    add_up(l, p, from, NULL, mean, 0);
    of_groups(l, mean, l->in_h * l->in_w);
    add_up(l, p, from, mean, scale, 1);
    of_groups(l, scale, l->in_h * l->in_w);
    for (int64_t c = 0; c < l->in_c; c++)
        scale[c] = 1.0f / sqrtf(scale[c] + l->eps);
    for (int64_t c = 0; c < l->in_c; c += MK_LANES) {
        int lanes = mk_lanes(l->in_c, c);
        vf middle = load(mean + c), wide = load(scale + c), bias = {0};
        if (l->weight >= 0)
            wide *= load(t->memory + r->weights + r->offset[l->weight] + c);
        if (l->bias >= 0)
            bias = load(t->memory + r->weights + r->offset[l->bias] + c);
        for (int64_t y = 0; y < l->in_h; y++)
            for (int64_t x = 0; x < l->in_w; x++) {
                vf v = (load_first(from + y * p->row + x * l->in_c + c, lanes) - middle) * wide + bias;
                store_first(to + y * row + x * step + c, mk_activated(v, l->act), lanes);
            }
    }
    if (l->pool)
        mk_pool_forward(t, layer, image, mid);
}

/* With g' = weight g: dx = scale (g' - mean of g' - x' mean of g' x'), the means over the group. */
void mk_group_backward(mk_thread *t, int64_t layer, int64_t image)
{
    const mk_run *r = t->run;
    const mk_layer *l = &r->job->layers[layer];
    const mk_place *p = &r->places[layer];
    const float *from = t->memory + p->in + image * p->image;
    const float *mean = t->memory + p->moments + image * 2 * p->mid, *scale = mean + p->mid;
    float *mid = t->memory + r->scratch, *plain = t->memory + p->sums, *turned = plain + p->mid;
    mk_pool_backward(t, layer, image, mid);
    for (int64_t c = 0; c < l->in_c; c += MK_LANES) {
        int lanes = mk_lanes(l->in_c, c);
        vf middle = load(mean + c), wide = load(scale + c), sum = {0}, product = {0};
        for (int64_t y = 0; y < l->in_h; y++) {
            vf row_sum = {0}, row_product = {0};
            for (int64_t x = 0; x < l->in_w; x++) {
                vf g = load(mid + (y * l->out_w + x) * p->mid + c);
                row_sum += g;
                row_product += g * ((load_first(from + y * p->row + x * l->in_c + c, lanes) - middle) * wide);
            }
            sum += row_sum;
            product += row_product;
        }
        store(plain + c, sum);
        store(turned + c, product);
    }
    const int32_t at[2] = {l->weight, l->bias};
    for (int i = 0; i < 2; i++)
        if (at[i] >= 0 && r->job->parameters[at[i]].trained)
            for (int64_t c = 0; c < l->in_c; c += MK_LANES) {
                float *to = t->memory + r->gradient + r->offset[at[i]] + c;
                store(to, load(to) + load((i ? plain : turned) + c));
            }
    if (layer == r->lowest)
        return;
    const float *weight = l->weight < 0 ? NULL : t->memory + r->weights + r->offset[l->weight];
    for (int64_t c = 0; weight && c < l->in_c; c++) {
        plain[c] *= weight[c];
        turned[c] *= weight[c];
    }
    of_groups(l, plain, l->in_h * l->in_w);
    of_groups(l, turned, l->in_h * l->in_w);
    for (int64_t c = 0; c < l->in_c; c += MK_LANES) {
        int lanes = mk_lanes(l->in_c, c);
        vf middle = load(mean + c), wide = load(scale + c), sum = load(plain + c), product = load(turned + c);
        vf by = weight ? load(weight + c) : all(1.0f);
        for (int64_t y = 0; y < l->in_h; y++)
            for (int64_t x = 0; x < l->in_w; x++) {
                int64_t place = y * p->row + x * l->in_c + c;
                vf g = load(mid + (y * l->out_w + x) * p->mid + c) * by;
                vf centred = (load_first(from + place, lanes) - middle) * wide;
                store_first(t->memory + p->slope + image * p->image + place, wide * (g - sum - centred * product), lanes);
            }
    }
}
