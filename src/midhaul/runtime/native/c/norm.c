#include "kernel.h"

#include <math.h>

/* Batch norm over the rows at hand (midhaul.models.norm.FedBatchNorm). A sum runs along a row of each image, then over
   the rows, then over the images, so that none of its parts is long. */

typedef struct {
    const mk_layer *l;
    const mk_place *p;
    int64_t channels, wide;
    float *mean, *scale; /* of each channel: 1 / sqrt(variance + eps) */
    const float *weight, *bias;
} norm;

static norm of(const mk_thread *t, int64_t layer)
{
    const mk_run *r = t->run;
    norm n = {.l = &r->job->layers[layer], .p = &r->places[layer]};
    n.channels = n.l->in_c;
    n.wide = rounded(n.channels);
    n.mean = t->memory + n.p->moments;
    n.scale = n.mean + n.wide;
    n.weight = n.l->weight < 0 ? NULL : t->memory + r->weights + r->offset[n.l->weight];
    n.bias = n.l->bias < 0 ? NULL : t->memory + r->weights + r->offset[n.l->bias];
    return n;
}

/* The mean over all places of x - minus, squared if `square`. */
static vf mean_of(const norm *n, const float *from, int64_t num, int64_t c, vf minus, int square)
{
    vf total = {0};
    int lanes = mk_lanes(n->channels, c);
    for (int64_t image = 0; image < num; image++) {
        vf of_image = {0};
        for (int64_t y = 0; y < n->l->in_h; y++) {
            const float *at = from + image * n->p->image + y * n->p->row + c;
            vf of_row = {0};
            for (int64_t x = 0; x < n->l->in_w; x++) {
                vf v = load_first(at + x * n->channels, lanes) - minus;
                of_row += square ? v * v : v;
            }
            of_image += of_row;
        }
        total += of_image;
    }
    return total / (float)(num * n->l->in_h * n->l->in_w);
}

/* The statistics that the device keeps, as torch has them; a single number a channel leaves them as they are. */
static void keep(const mk_thread *t, const norm *n, int64_t c, vf mean, vf variance, float count, float share)
{
    const mk_run *r = t->run;
    float *means = t->memory + r->weights + r->offset[n->l->mean] + c;
    float *variances = t->memory + r->weights + r->offset[n->l->variance] + c;
    store(means, (1.0f - share) * load(means) + share * mean);
    store(variances, (1.0f - share) * load(variances) + share * (variance * count / (count - 1.0f)));
}

static void moments(mk_thread *t, const norm *n, int64_t num)
{
    const mk_run *r = t->run;
    const float *from = t->memory + n->p->in;
    int kept = n->l->mean >= 0;
    float count = (float)(num * n->l->in_h * n->l->in_w), share = n->l->momentum;
    if (kept && r->job->training && count > 1.0f && n->l->count >= 0) {
        float *batches = t->memory + r->weights + r->offset[n->l->count];
        *batches += 1.0f;
        share = 1.0f / *batches;
    }
    for (int64_t c = 0; c < n->wide; c += MK_LANES) {
        vf mean, variance, scale;
        if (kept && !r->job->training) {
            mean = load(t->memory + r->weights + r->offset[n->l->mean] + c);
            variance = load(t->memory + r->weights + r->offset[n->l->variance] + c);
        } else {
            mean = mean_of(n, from, num, c, (vf){0}, 0);
            variance = mean_of(n, from, num, c, mean, 1);
            if (kept && count > 1.0f)
                keep(t, n, c, mean, variance, count, share);
        }
        for (int i = 0; i < MK_LANES; i++)
            scale[i] = 1.0f / sqrtf(variance[i] + n->l->eps);
        store(n->mean + c, mean);
        store(n->scale + c, scale);
    }
}

void mk_norm_forward(mk_thread *t, int64_t layer, int64_t num)
{
    norm n = of(t, layer);
    const mk_layer *l = n.l;
    float *mid = t->memory + t->run->scratch;
    moments(t, &n, num);
    for (int64_t image = 0; image < num; image++) {
        const mk_place *q = n.p + 1;
        float *to = l->pool ? mid : t->memory + q->in + image * q->image + q->inside;
        int64_t step = l->pool ? n.p->mid : n.channels, row = l->pool ? l->out_w * n.p->mid : q->row;
        for (int64_t c = 0; c < n.wide; c += MK_LANES) {
            int lanes = mk_lanes(n.channels, c);
            vf mean = load(n.mean + c), scale = load(n.scale + c), bias = n.bias ? load(n.bias + c) : (vf){0};
            if (n.weight)
                scale *= load(n.weight + c);
            for (int64_t y = 0; y < l->in_h; y++) {
                const float *from = t->memory + n.p->in + image * n.p->image + y * n.p->row + c;
                for (int64_t x = 0; x < l->in_w; x++) {
                    vf v = (load_first(from + x * n.channels, lanes) - mean) * scale + bias;
                    store_first(to + y * row + x * step + c, mk_activated(v, l->act), lanes);
                }
            }
        }
        if (l->pool)
            mk_pool_forward(t, layer, image, mid);
    }
}

/* dx = weight scale (g - mean of g - x' mean of g x'), with x' = (x - mean) scale. */
void mk_norm_backward(mk_thread *t, int64_t layer, int64_t num)
{
    const mk_run *r = t->run;
    norm n = of(t, layer);
    const mk_layer *l = n.l;
    float *mid = t->memory + r->scratch, *plain = t->memory + n.p->sums, *turned = plain + n.wide;
    int below = layer != r->lowest;
    memset(plain, 0, (size_t)(2 * n.wide) * sizeof(float));
    for (int64_t image = 0; image < num; image++) {
        const float *from = t->memory + n.p->in + image * n.p->image;
        float *to = below ? t->memory + n.p->slope + image * n.p->image : NULL;
        mk_pool_backward(t, layer, image, mid);
        for (int64_t c = 0; c < n.wide; c += MK_LANES) {
            int lanes = mk_lanes(n.channels, c);
            vf mean = load(n.mean + c), scale = load(n.scale + c), sum = {0}, product = {0};
            for (int64_t y = 0; y < l->in_h; y++) {
                vf row_sum = {0}, row_product = {0};
                for (int64_t x = 0; x < l->in_w; x++) {
                    vf g = load_first(mid + (y * l->out_w + x) * n.p->mid + c, lanes);
                    row_sum += g;
                    row_product += g * ((load_first(from + y * n.p->row + x * n.channels + c, lanes) - mean) * scale);
                    if (below)
                        store_first(to + y * n.p->row + x * n.channels + c, g, lanes);
                }
                sum += row_sum;
                product += row_product;
            }
            store(plain + c, load(plain + c) + sum);
            store(turned + c, load(turned + c) + product);
        }
    }
    const int32_t at[2] = {l->weight, l->bias};
    for (int i = 0; i < 2; i++)
        if (at[i] >= 0 && r->job->parameters[at[i]].trained)
            for (int64_t c = 0; c < n.wide; c += MK_LANES) {
                float *to = t->memory + r->gradient + r->offset[at[i]] + c;
                store(to, load(to) + load((i ? plain : turned) + c));
            }
    if (!below)
        return;
    float share = 1.0f / (float)(num * l->in_h * l->in_w);
    for (int64_t image = 0; image < num; image++)
        for (int64_t c = 0; c < n.wide; c += MK_LANES) {
            int lanes = mk_lanes(n.channels, c);
            vf mean = load(n.mean + c), scale = load(n.scale + c);
            vf sum = load(plain + c) * share, product = load(turned + c) * share;
            vf wide = n.weight ? scale * load(n.weight + c) : scale;
            for (int64_t y = 0; y < l->in_h; y++)
                for (int64_t x = 0; x < l->in_w; x++) {
                    int64_t place = image * n.p->image + y * n.p->row + x * n.channels + c;
                    float *to = t->memory + n.p->slope + place;
                    vf centred = (load_first(t->memory + n.p->in + place, lanes) - mean) * scale;
                    store_first(to, wide * (load_first(to, lanes) - sum - centred * product), lanes);
                }
        }
}
