#include "run.h"

#include <stdlib.h>
#include <time.h>

#define LINE 64
#define FETCHED 8192 /* bytes of rows that are asked for ahead */

/* Moves the weights a step; the gradient is 0 behind it. As torch.optim.SGD does it, with the proximal term before. */
static void move(mk_thread *t)
{
    const mk_run *r = t->run;
    const mk_job *job = r->job;
    const vf decay = all(job->weight_decay), mu = all(job->proximal_mu), kept = all(job->momentum), lr = all(job->lr);
    for (int64_t i = 0; i < job->num_layers; i++) {
        const mk_layer *l = &job->layers[i];
        const int32_t both[2] = {l->weight, l->bias};
        for (int n = t->fused && r->places[i].dense; n < 2; n++) {
            if (both[n] < 0 || !job->parameters[both[n]].trained)
                continue;
            int64_t from = r->offset[both[n]], end = r->offset[both[n] + 1];
            float *w = t->memory + r->weights, *g = t->memory + r->gradient;
            const float *start = t->memory + r->start;
            float *velocity = t->memory + r->velocity;
            for (int64_t k = from; k < end; k += MK_LANES) {
                vf slope = load(g + k), weight = load(w + k);
                if (!r->plain) {
                    if (job->proximal_mu != 0.0f)
                        slope += mu * (weight - load(start + k));
                    if (job->weight_decay != 0.0f)
                        slope += decay * weight;
                    if (job->momentum != 0.0f) {
                        slope += kept * load(velocity + k);
                        store(velocity + k, slope);
                    }
                }
                store(w + k, weight - lr * slope);
                store(g + k, (vf){0});
            }
        }
    }
    t->stale = 1;
}

/* The loss of a part of a batch, and its slopes at the last layer's outputs. `order` has places among the device's rows. */
static double losses(mk_thread *t, int64_t device, const int64_t *order, int64_t num, float scale)
{
    const mk_job *job = t->run->job;
    const mk_place *p = &t->run->places[job->num_layers];
    int64_t classes = job->layers[job->num_layers - 1].out_c, first = job->first[device];
    double total = 0.0;
    for (int64_t m = 0; m < num; m++) {
        const float *z = t->memory + p->in + m * p->image;
        float *g = t->memory + p->slope + m * p->image;
        const float *target = job->targets ? job->targets + first + order[m] : NULL;
        const float *soft = job->soft ? job->soft + device * job->soft_device + order[m] * job->soft_row : NULL;
        int64_t y = job->labels ? job->labels[first + order[m]] : -1;
        if (job->loss_kind == MK_CROSS_ENTROPY && soft) {
            total += mk_distillation_f32(z, soft, classes, y, job->temperature, job->soft_weight, scale, g);
        } else if (job->loss_kind == MK_CROSS_ENTROPY) {
            total += mk_cross_entropy_f32(z, classes, y, scale, g);
        } else {
            float share = soft ? 1.0f - job->soft_weight : 1.0f, sum = 0.0f;
            double hard = mk_mse_f32(z, classes, y, target, scale * share, g);
            for (int64_t c = 0; soft && c < classes; c++) {
                float d = z[c] - soft[c];
                sum += d * d;
                g[c] += 2.0f / (float)classes * scale * job->soft_weight * d;
            }
            total += soft ? (double)share * hard + (double)(job->soft_weight * (sum / (float)classes)) : hard;
        }
    }
    return total;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void one_layer(mk_thread *t, int64_t layer, int64_t num, int back)
{
    double *spent = t->run->job->spent, began = spent ? seconds() : 0.0;
    mk_layer_pass(t, layer, num, back);
    if (spent)
        spent[2 * layer + back] += seconds() - began;
}

static void forward(mk_thread *t, int64_t num)
{
    for (int64_t i = 0; i < t->run->job->num_layers; i++)
        one_layer(t, i, num, 0);
}

static void backward(mk_thread *t, int64_t num)
{
    for (int64_t i = t->run->job->num_layers - 1; i >= t->run->lowest; i--)
        one_layer(t, i, num, 1);
    t->stale = 0;
}

/* Asks for rows that will be read next, as far as they leave room in the first cache: shuffled, no hardware foresees
   them. */
static void fetch(const mk_job *job, int64_t device, const int64_t *order, int64_t num)
{
    const int64_t *own = job->rows + job->first[device];
    int64_t size = job->row_size * (job->bytes ? 1 : (int64_t)sizeof(float));
    const char *from = job->bytes ? (const char *)job->bytes : (const char *)job->x;
    for (int64_t m = 0; m < num && (m + 1) * size <= FETCHED; m++)
        for (int64_t at = 0; at < size; at += LINE)
            __builtin_prefetch(from + own[order[m]] * size + at);
}

/* One step on the rows that `order` names. */
static double step(mk_thread *t, int64_t device, const int64_t *order, int64_t num, int64_t *rows)
{
    const mk_run *r = t->run;
    const int64_t *own = r->job->rows + r->job->first[device];
    double total = 0.0;
    t->fused = r->plain && num <= r->most;
    for (int64_t at = 0; at < num; at += r->most) {
        int64_t part = num - at < r->most ? num - at : r->most;
        for (int64_t m = 0; m < part; m++)
            rows[m] = own[order[at + m]];
        mk_read_rows(t, rows, part);
        forward(t, part);
        total += losses(t, device, order + at, part, 1.0f / (float)num);
        backward(t, part);
    }
    move(t);
    return total;
}

/* Every epoch in an order of its own, as `midhaul.ops.batches` has it. */
static int fit_device(mk_thread *t, int64_t d)
{
    const mk_job *job = t->run->job;
    int64_t num = job->first[d + 1] - job->first[d], size = job->batch[d] ? job->batch[d] : num;
    int64_t steps = job->steps[d], made = 0, epoch = job->epoch[d], begin = size * job->step[d];
    int64_t *order = malloc((size_t)(num + t->run->most + 1) * sizeof *order), seen = 0;
    double total = 0.0;
    if (!order)
        return 1;
    mk_start(t, d);
    while (num && (steps > made || (!steps && epoch < job->epochs[d]))) {
        uint32_t use = (uint32_t)((job->use & 0xFF) | ((uint64_t)epoch << 8));
        mk_permutation(job->seed, (uint32_t)job->round, (uint32_t)job->device[d], use, num, order);
        for (int64_t at = begin; at < num && !(steps && made == steps); at += size, made++) {
            int64_t part = num - at < size ? num - at : size, left = num - at - part;
            fetch(job, d, order + at + part, left < size ? left : size);
            total += step(t, d, order + at, part, order + num);
            seen += part;
        }
        begin = 0;
        epoch++;
    }
    mk_end(t, d, 0);
    job->seen[d] = (double)seen;
    job->loss[d] = total / (double)(seen ? seen : 1);
    free(order);
    return 0;
}

static int run(const mk_job *job, int (*device)(mk_thread *t, int64_t d))
{
    mk_run r;
    int failed = mk_prepare(&r, job) || mk_each_device(&r, device);
    mk_release(&r);
    return failed;
}

int mk_fit(const mk_job *job)
{
    return run(job, fit_device);
}

/* All rows of a device, those of a batch norm in one batch: forward, and then the slopes at the outputs, if there are any,
   all the way down. */
static int pass_device(mk_thread *t, int64_t d)
{
    const mk_run *r = t->run;
    const mk_job *job = r->job;
    mk_start(t, d);
    for (int64_t at = job->first[d]; at < job->first[d + 1]; at += r->most) {
        int64_t num = job->first[d + 1] - at < r->most ? job->first[d + 1] - at : r->most;
        mk_read_rows(t, job->rows + at, num);
        forward(t, num);
        mk_move_outputs(t, at, num);
        if (job->slopes)
            backward(t, num);
    }
    mk_end(t, d, 1);
    return 0;
}

int mk_pass(const mk_job *job)
{
    return run(job, pass_device);
}
