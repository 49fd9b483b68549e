#define _GNU_SOURCE
#include "run.h"

#include <pthread.h>
#include <stdlib.h>

/* Rows of a batch that are taken through the layers together: as many as stay in the cache, and enough for a block of a
   product. A batch norm needs all of them, unless it takes the statistics that it has kept. */
#define PART 32

static int64_t packed(const mk_parameter *p)
{
    return p->in * p->taps * rounded(p->out);
}

/* torch's [out][in][taps] to [taps][in][out]. */
static void pack(const mk_parameter *p, const float *from, float *to)
{
    int64_t size = p->in * p->taps, ldw = rounded(p->out);
    for (int64_t o = 0; o < ldw; o += MK_LANES)
        for (int64_t i = 0, j = 0; i < p->in; i++)
            for (int64_t k = 0; k < p->taps; k++, j++) {
                float *at = to + (k * p->in + i) * ldw + o;
                for (int64_t n = 0; n < MK_LANES; n++)
                    at[n] = o + n < p->out ? from[(o + n) * size + j] : 0.0f;
            }
}

static void unpack(const mk_parameter *p, const float *from, float *to)
{
    int64_t size = p->in * p->taps, ldw = rounded(p->out);
    if (p->taps == 1) {
        mk_transpose_f32(from, p->in, p->out, ldw, to, p->in);
        return;
    }
    for (int64_t o = 0; o < p->out; o += MK_LANES) {
        int64_t num = p->out - o < MK_LANES ? p->out - o : MK_LANES;
        for (int64_t i = 0, j = 0; i < p->in; i++)
            for (int64_t k = 0; k < p->taps; k++, j++)
                for (int64_t n = 0; n < num; n++)
                    to[(o + n) * size + j] = from[(k * p->in + i) * ldw + o + n];
    }
}

static int64_t largest_batch(const mk_job *job)
{
    int64_t most = 1;
    for (int64_t d = 0; d < job->num_devices; d++) {
        int64_t num = job->first[d + 1] - job->first[d], batch = job->batch ? job->batch[d] : 0;
        num = batch && batch < num ? batch : num;
        most = num > most ? num : most;
    }
    return most;
}

static int64_t take(int64_t *total, int64_t num)
{
    int64_t at = *total;
    *total += (num + MK_LANES + 15) / 16 * 16; /* room for a whole vector behind the last number */
    return at;
}

static void lay_out(mk_run *r, const mk_layer *l, mk_place *p, int64_t *total)
{
    int64_t layer = p - r->places, channels = l->in_c;
    p->row = (l->pad_left + l->in_w + l->pad_right) * channels;
    p->image = rounded((l->pad_top + l->in_h + l->pad_bottom) * p->row);
    p->inside = l->pad_top * p->row + l->pad_left * channels;
    p->in = take(total, r->most * p->image);
    p->mid = rounded(l->out_c);
    if (layer > r->lowest)
        p->slope = take(total, r->most * p->image);
    if (l->pool == MK_MAX)
        p->picks = take(total, (r->most * l->end_h * l->end_w * p->mid + 3) / 4);
    if (l->kind == MK_NORM || l->kind == MK_GROUP) {
        p->moments = take(total, (l->kind == MK_NORM ? 1 : r->most) * 2 * p->mid);
        p->sums = take(total, 2 * p->mid);
    }
    if (l->kind == MK_CONV || l->kind == MK_DEPTHWISE) {
        int whole = l->kernel_h == l->in_h && l->kernel_w == l->in_w && p->inside == 0 && l->out_h * l->out_w == 1;
        p->dense = whole && l->kind == MK_CONV && !l->pool && p->row == l->in_w * channels;
        p->segments = p->dense ? 1 : l->kernel_h;
        p->depth = (p->dense ? l->kernel_h : 1) * l->kernel_w * (l->kind == MK_CONV ? channels : 1);
        p->ldw = rounded(l->out_c);
        p->ldt = rounded(p->depth);
        if (layer > r->lowest && l->kind == MK_CONV)
            p->back = take(total, (p->segments * l->out_c + 3) * p->ldt); /* turned four by four */
    }
    int64_t scratch = l->out_h * l->out_w * p->mid, places = l->out_h * l->out_w;
    r->widest = scratch > r->widest ? scratch : r->widest;
    places = places > r->most ? places : r->most;
    r->out_stride = places > r->out_stride ? places : r->out_stride;
}

int mk_prepare(mk_run *r, const mk_job *job)
{
    int64_t num = job->num_layers, num_taps = 0, norm = 0;
    *r = (mk_run){.job = job, .lowest = num};
    r->places = calloc((size_t)num + 1, sizeof *r->places);
    r->offset = calloc((size_t)job->num_parameters + 1, sizeof *r->offset);
    r->tap_start = calloc((size_t)num, sizeof *r->tap_start);
    if (!r->places || !r->offset || !r->tap_start)
        return 1;
    for (int64_t i = num - 1; i >= 0; i--) {
        const mk_layer *l = &job->layers[i];
        const int32_t at[2] = {l->weight, l->bias};
        for (int n = 0; n < 2; n++)
            if (at[n] >= 0 && job->parameters[at[n]].trained)
                r->lowest = i;
        norm |= l->kind == MK_NORM && (job->training || l->mean < 0);
    }
    for (int64_t i = 0; i < job->num_parameters; i++)
        r->offset[i + 1] = r->offset[i] + packed(&job->parameters[i]);
    int64_t size = r->offset[job->num_parameters], total = 0;
    r->most = largest_batch(job);
    if (!norm && r->most > PART)
        r->most = PART;
    r->plain = job->momentum == 0.0f && job->weight_decay == 0.0f && job->proximal_mu == 0.0f;
    r->weights = take(&total, size);
    r->gradient = take(&total, size);
    r->start = job->proximal_mu != 0.0f ? take(&total, size) : 0;
    r->velocity = job->momentum != 0.0f ? take(&total, size) : 0;
    for (int64_t i = 0; i < num; i++) {
        lay_out(r, &job->layers[i], &r->places[i], &total);
        num_taps += r->places[i].segments * r->places[i].depth;
    }
    const mk_layer *last = &job->layers[num - 1];
    mk_place *end = &r->places[num];
    end->row = last->end_w * last->out_c;
    end->image = rounded(last->end_h * end->row);
    end->in = take(&total, r->most * end->image);
    end->slope = take(&total, r->most * end->image);
    r->scratch = take(&total, r->widest);
    r->total = total;

    r->taps = calloc((size_t)num_taps + 1, sizeof *r->taps);
    r->shared = aligned_alloc(64, (size_t)(size + 16) / 16 * 64);
    if (!r->taps || !r->shared)
        return 1;
    int64_t at = 0;
    for (int64_t i = 0; i < num; i++) {
        const mk_place *p = &r->places[i];
        r->tap_start[i] = at;
        for (int64_t s = 0; s < p->segments; s++)
            for (int64_t k = 0; k < p->depth; k++)
                r->taps[at++] = s * p->row + k;
    }
    for (int64_t i = 0; i < job->num_parameters; i++)
        if (!job->parameters[i].step)
            pack(&job->parameters[i], job->parameters[i].start, r->shared + r->offset[i]);
    return 0;
}

void mk_release(mk_run *r)
{
    free(r->places);
    free(r->offset);
    free(r->taps);
    free(r->tap_start);
    free(r->shared);
}

void mk_start(mk_thread *t, int64_t device)
{
    const mk_run *r = t->run;
    const mk_job *job = r->job;
    float *w = t->memory + r->weights;
    size_t bytes = (size_t)r->offset[job->num_parameters] * sizeof(float);
    for (int64_t i = 0; i < job->num_parameters; i++) {
        const mk_parameter *p = &job->parameters[i];
        if (p->step)
            pack(p, p->start + device * p->step, w + r->offset[i]);
        else
            memcpy(w + r->offset[i], r->shared + r->offset[i], (size_t)packed(p) * sizeof(float));
    }
    if (job->proximal_mu != 0.0f)
        memcpy(t->memory + r->start, w, bytes);
    if (job->momentum != 0.0f)
        memset(t->memory + r->velocity, 0, bytes);
    memset(t->memory + r->gradient, 0, bytes);
    t->stale = 1;
}

void mk_end(mk_thread *t, int64_t device, int gradient)
{
    const mk_run *r = t->run;
    for (int64_t i = 0; i < r->job->num_parameters; i++) {
        const mk_parameter *p = &r->job->parameters[i];
        int64_t from = gradient && p->trained ? r->gradient : r->weights;
        if (p->end)
            unpack(p, t->memory + from + r->offset[i], p->end + device * p->out * p->in * p->taps);
    }
}

/* torch's [channels][height][width] to an image inside, or back. */
static void image_in(float *to, int64_t row, int64_t h, int64_t w, int64_t channels, const float *from)
{
    if (row == w * channels) { /* no padding beside it */
        mk_transpose_f32(from, channels, h * w, h * w, to, channels);
        return;
    }
    for (int64_t y = 0; y < h; y++)
        if (channels == 1)
            memcpy(to + y * row, from + y * w, (size_t)w * sizeof(float));
        else
            mk_transpose_f32(from + y * w, channels, w, h * w, to + y * row, channels);
}

static void image_out(const float *from, int64_t row, int64_t h, int64_t w, int64_t channels, float *to)
{
    if (row == w * channels) {
        mk_transpose_f32(from, h * w, channels, channels, to, h * w);
        return;
    }
    for (int64_t y = 0; y < h; y++)
        mk_transpose_f32(from + y * row, w, channels, channels, to + y * w, h * w);
}

static void bytes_in(float *to, int64_t row, const mk_layer *l, const uint8_t *from, const float *levels)
{
    for (int32_t y = 0; y < l->in_h; y++)
        for (int32_t x = 0; x < l->in_w; x++)
            for (int64_t c = 0; c < l->in_c; c++)
                to[y * row + x * l->in_c + c] = levels[from[(c * l->in_h + y) * l->in_w + x]];
}

void mk_read_rows(mk_thread *t, const int64_t *rows, int64_t num)
{
    const mk_job *job = t->run->job;
    const mk_layer *l = &job->layers[0];
    const mk_place *p = &t->run->places[0];
    for (int64_t m = 0; m < num; m++) {
        float *to = t->memory + p->in + m * p->image + p->inside;
        if (job->bytes)
            bytes_in(to, p->row, l, job->bytes + rows[m] * job->row_size, job->x);
        else if (l->in_h * l->in_w == 1)
            for (int64_t c = 0; c < l->in_c; c += MK_LANES) {
                int num = mk_lanes(l->in_c, c);
                store_first(to + c, load_first(job->x + rows[m] * job->row_size + c, num), num);
            }
        else
            image_in(to, p->row, l->in_h, l->in_w, l->in_c, job->x + rows[m] * job->row_size);
    }
}

void mk_move_outputs(mk_thread *t, int64_t at, int64_t num)
{
    const mk_job *job = t->run->job;
    const mk_layer *l = &job->layers[job->num_layers - 1];
    const mk_place *p = &t->run->places[job->num_layers];
    int64_t size = l->end_h * l->end_w * l->out_c;
    for (int64_t m = 0; m < num; m++) {
        float *out = t->memory + p->in + m * p->image, *slope = t->memory + p->slope + m * p->image;
        if (job->slopes)
            image_in(slope, p->row, l->end_h, l->end_w, l->out_c, job->slopes + (at + m) * size);
        else
            image_out(out, p->row, l->end_h, l->end_w, l->out_c, job->out + (at + m) * size);
    }
}

typedef struct {
    mk_run *run;
    int (*device)(mk_thread *t, int64_t d);
} crew;

static void *work(void *argument)
{
    crew *of = argument;
    mk_run *r = of->run;
    size_t bytes = (size_t)(r->total + 16) / 16 * 64;
    mk_thread t = {.run = r, .memory = aligned_alloc(64, bytes)};
    t.a = malloc((size_t)r->out_stride * sizeof *t.a);
    t.c = malloc((size_t)r->out_stride * sizeof *t.c);
    if (t.memory && t.a && t.c) {
        memset(t.memory, 0, bytes);
        for (;;) {
            int64_t d = __atomic_fetch_add(&r->next, 1, __ATOMIC_RELAXED);
            if (d >= r->job->num_devices)
                break;
            if (of->device(&t, d))
                __atomic_store_n(&r->failed, 1, __ATOMIC_RELAXED);
        }
    } else {
        __atomic_store_n(&r->failed, 1, __ATOMIC_RELAXED);
    }
    free(t.memory);
    free(t.a);
    free(t.c);
    return NULL;
}

int mk_each_device(mk_run *r, int (*device)(mk_thread *t, int64_t d))
{
    crew of = {r, device};
    pthread_t thread[256];
    int64_t num = r->job->threads < r->job->num_devices ? r->job->threads : r->job->num_devices, made = 0;
    for (; made + 1 < num && made < 256; made++)
        if (pthread_create(&thread[made], NULL, work, &of))
            break; /* fewer threads do the same work */
    work(&of);
    for (int64_t i = 0; i < made; i++)
        pthread_join(thread[i], NULL);
    return (int)r->failed;
}
