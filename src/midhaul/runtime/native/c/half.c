#define _GNU_SOURCE
#include "half.h"

#include <math.h>
#include <stdlib.h>

/* A step's rows are dealt to parts, each with a gradient of its own, and these are added in their order: so what comes of
   it depends on the number of rows, and not on that of threads. */
static int64_t parts_of(int64_t rows)
{
    int64_t parts = 1;
    while (parts < 32 && rows >= 8 * parts)
        parts *= 2;
    return parts;
}

/* Waits until all threads are here. */
static void meet(mk_team *t)
{
    pthread_mutex_lock(&t->lock);
    int64_t turn = t->turn;
    if (++t->waiting == t->threads) {
        t->waiting = 0;
        t->turn++;
        pthread_cond_broadcast(&t->open);
    } else {
        while (turn == t->turn)
            pthread_cond_wait(&t->open, &t->lock);
    }
    pthread_mutex_unlock(&t->lock);
}

/* Transposes the weights of one product in `threads`. */
static void turn_weights(mk_worker *w)
{
    const mk_team *t = w->of;
    const mk_encoder *e = t->e;
    const mk_encoder_places *p = &t->at;
    const int64_t E = e->width, F = e->inner;
    int64_t number = 0;
#define TURN(at, rows, columns)                                                                                        \
    if (number++ % t->threads == w->number)                                                                            \
        mk_transpose_f32(t->job->weights + (at), rows, columns, columns, t->turned + (at), rows);
    for (int64_t b = 0; b < e->depth; b++) {
        const int64_t block = p->blocks + b * p->block;
        TURN(block + p->qkv, 3 * E, E)
        TURN(block + p->fc1, F, E)
        TURN(block + p->fc2, E, F)
        TURN(block + p->out, E, E)
    }
    TURN(p->embed, E, e->padded)
}

/* Takes rows of a step, a part at a time, until there are none. */
static void take_parts(mk_worker *w, int64_t step)
{
    mk_team *t = w->of;
    const mk_half *job = t->job;
    const int64_t num = job->num[step], first = job->start[step], parts = parts_of(num), row = t->e->row;
    const float scale = 1.0f / (float)num;
    for (;;) {
        int64_t part = __atomic_fetch_add(&t->next, 1, __ATOMIC_RELAXED);
        if (part >= parts)
            return;
        float *gradient = t->gradients + part * t->at.size;
        if (job->labels)
            memset(gradient, 0, (size_t)t->at.size * sizeof(float));
        for (int64_t r = part * num / parts; r < (part + 1) * num / parts; r++) {
            const int64_t at = first + r;
            mk_encoder_forward(w, job->x + at * row);
            if (job->labels)
                t->losses[r] = mk_encoder_backward(w, job->labels[at], scale, gradient, job->slopes + at * row);
            else
                memcpy(job->out + at * t->e->classes, w->memory + t->in.logits,
                       (size_t)t->e->classes * sizeof(float));
        }
    }
}

/* Adds the parts' gradients and steps, on a thread's share of the parameters. As Optimizer in server.py, and in its order;
   AdamW by Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2. */
static void update(mk_worker *w, int64_t step)
{
    const mk_team *t = w->of;
    const mk_half *job = t->job;
    const int64_t size = t->at.size, pieces = size / 16, parts = parts_of(job->num[step]);
    const double count = (double)(job->count + step + 1);
    const vf keep = all((float)(1.0 - job->lr * job->weight_decay)), decay = all((float)job->weight_decay);
    const vf momentum = all((float)job->momentum), plain = all((float)-job->lr);
    const vf rate = all((float)(-job->lr / (1.0 - pow(0.9, count)))), deep = all((float)sqrt(1.0 - pow(0.999, count)));
    const int64_t end = pieces * (w->number + 1) / t->threads * 16;
    for (int64_t i = pieces * w->number / t->threads * 16; i < end; i += MK_LANES) {
        vf g = load(t->gradients + i), weight = load(job->weights + i), first = load(job->first + i);
        for (int64_t part = 1; part < parts; part++)
            g += load(t->gradients + part * size + i);
        if (job->optimizer == MK_ADAM) {
            vf second = load(job->second + i) * 0.999f + 0.001f * (g * g), scale;
            first += 0.1f * (g - first);
            for (int n = 0; n < MK_LANES; n++)
                scale[n] = sqrtf(second[n]);
            store(job->second + i, second);
            weight = weight * keep + rate * (first / (scale / deep + 1e-8f));
        } else {
            if (job->weight_decay != 0.0)
                g += decay * weight;
            first = first * momentum + g;
            weight += plain * (job->momentum != 0.0 ? first : g);
        }
        store(job->first + i, first);
        store(job->weights + i, weight);
    }
}

static void *work(void *argument)
{
    mk_worker *w = argument;
    mk_team *t = w->of;
    const mk_half *job = t->job;
    pthread_mutex_lock(&t->lock); /* until the number of threads is known */
    pthread_mutex_unlock(&t->lock);
    for (int64_t step = 0; step < job->steps; step++) {
        if (!step || job->labels)
            turn_weights(w);
        if (!w->number)
            t->next = 0;
        meet(t);
        take_parts(w, step);
        meet(t);
        if (!job->labels)
            continue;
        update(w, step);
        if (!w->number) {
            double sum = 0.0;
            for (int64_t r = 0; r < job->num[step]; r++)
                sum += t->losses[r];
            job->loss[step] = sum / (double)job->num[step];
        }
        meet(t);
    }
    return NULL;
}

static int equip(mk_worker *w, mk_team *t, int64_t number)
{
    const mk_encoder *e = t->e;
    const size_t bytes = (size_t)(t->in.total + 16) / 16 * 64, rows = (size_t)e->tokens;
    int64_t most = 3 * e->width > e->inner ? 3 * e->width : e->inner;
    *w = (mk_worker){.of = t, .number = number, .memory = aligned_alloc(64, bytes)};
    w->a = malloc(rows * sizeof *w->a);
    w->c = malloc(rows * sizeof *w->c);
    w->offsets = malloc((size_t)most * sizeof *w->offsets);
    if (!w->memory || !w->a || !w->c || !w->offsets)
        return 1;
    memset(w->memory, 0, bytes);
    for (int64_t i = 0; i < most; i++)
        w->offsets[i] = i;
    return 0;
}

int mk_encoder_steps(const mk_half *job)
{
    mk_team t = {.job = job, .e = job->encoder, .at = mk_places_of(job->encoder), .in = mk_room_of(job->encoder)};
    int64_t most = 1, made = 0, failed = 0, num = job->threads < 1 ? 1 : job->threads > 256 ? 256 : job->threads;
    for (int64_t step = 0; step < job->steps; step++)
        most = job->num[step] > most ? job->num[step] : most;
    num = num < parts_of(most) ? num : parts_of(most);
    const size_t size = (size_t)t.at.size, parts = job->labels ? (size_t)parts_of(most) : 0;
    t.turned = aligned_alloc(64, (size + 16) * sizeof(float));
    t.gradients = aligned_alloc(64, (size * parts + 16) * sizeof(float));
    t.losses = malloc((size_t)most * sizeof *t.losses);
    mk_worker *worker = calloc((size_t)num, sizeof *worker);
    failed = !t.turned || !t.gradients || !t.losses || !worker;
    for (int64_t i = 0; !failed && i < num; i++)
        failed = equip(&worker[i], &t, i);
    if (!failed) {
        memset(t.turned, 0, (size + 16) * sizeof(float));
        pthread_t thread[256];
        pthread_mutex_init(&t.lock, NULL);
        pthread_cond_init(&t.open, NULL);
        pthread_mutex_lock(&t.lock);
        for (; made + 1 < num; made++)
            if (pthread_create(&thread[made], NULL, work, &worker[made + 1]))
                break; /* fewer threads do the same work */
        t.threads = made + 1;
        pthread_mutex_unlock(&t.lock);
        work(&worker[0]);
        for (int64_t i = 0; i < made; i++)
            pthread_join(thread[i], NULL);
        pthread_mutex_destroy(&t.lock);
        pthread_cond_destroy(&t.open);
    }
    for (int64_t i = 0; worker && i < num; i++) {
        free(worker[i].memory);
        free(worker[i].a);
        free(worker[i].c);
        free(worker[i].offsets);
    }
    free(worker);
    free(t.turned);
    free(t.gradients);
    free(t.losses);
    return (int)failed;
}
