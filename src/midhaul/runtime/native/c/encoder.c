#include "half.h"
#include "rows.h"

#include <math.h>

mk_encoder_places mk_places_of(const mk_encoder *e)
{
    const int64_t E = e->width, F = e->inner;
    mk_encoder_places p = {0};
    int64_t at = 0;
#define NEXT(name, num) (p.name = at, at += (num))
    NEXT(norm1, 2 * E);
    NEXT(qkv, 3 * E * E);
    NEXT(qkv_bias, 3 * E);
    NEXT(out, E * E);
    NEXT(out_bias, E);
    NEXT(norm2, 2 * E);
    NEXT(fc1, F * E);
    NEXT(fc1_bias, F);
    NEXT(fc2, E * F);
    NEXT(fc2_bias, E);
    p.block = at;
    at = 0;
    NEXT(embed, E * e->padded);
    NEXT(embed_bias, E);
    NEXT(position, e->tokens * E);
    NEXT(blocks, e->depth * p.block);
    NEXT(norm, 2 * E);
    NEXT(head, e->classes * E);
    NEXT(head_bias, e->classes);
    p.size = (at + 15) / 16 * 16;
    return p;
}

int64_t mk_encoder_size(const mk_encoder *e)
{
    return mk_places_of(e).size;
}

mk_encoder_room mk_room_of(const mk_encoder *e)
{
    const int64_t L = e->tokens, E = e->width, F = e->inner, ld = (L + 15) / 16 * 16;
    mk_encoder_room p = {.ld = ld};
    int64_t at = 0;
#undef NEXT
#define NEXT(name, num) (p.name = at, at += ((num) + 31) / 16 * 16) /* room for a vector behind the last number */
    NEXT(in, L * E);
    NEXT(moments1, 2 * L);
    NEXT(normed1, L * E);
    NEXT(qkv, 3 * L * E);
    NEXT(share, e->heads * L * ld);
    NEXT(mixed, L * E);
    NEXT(mid, L * E);
    NEXT(moments2, 2 * L);
    NEXT(normed2, L * E);
    NEXT(active, L * F);
    NEXT(bend, L * F);
    p.block = at;
    at = 0;
    NEXT(x, L * e->padded);
    NEXT(blocks, e->depth * p.block);
    NEXT(last, L * E);
    NEXT(last_moments, 2 * L);
    NEXT(turned, E * ld);
    NEXT(slope_qkv, 3 * L * E);
    NEXT(slope_turned, 2 * E * ld);
    NEXT(slope_share, L * ld);
    NEXT(slope_inner, L * (F > e->padded ? F : e->padded));
    NEXT(slope, L * E);
    NEXT(side, L * E);
    NEXT(pooled, 2 * E);
    NEXT(logits, 2 * e->classes);
    p.total = at;
    return p;
}

/* c[L][columns] = a[L][depth] b[depth][columns] + bias, or added to c. */
static void product(mk_worker *w, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t depth, int64_t columns,
                    const float *bias, float *c, int64_t ldc, int mode)
{
    const int64_t rows = w->of->e->tokens;
    for (int64_t m = 0; m < rows; m++) {
        w->a[m] = a + m * lda;
        w->c[m] = c + m * ldc;
    }
    mk_product p = {.rows = rows, .columns = columns, .segments = 1, .depth = depth, .ldb = ldb, .b = b, .bias = bias};
    p.mode = mode;
    mk_product_f32(&p, w->a, w->c);
}

/* to[num][ldw] += the sum over tokens of a[token][num] g[token][ldw]. */
static void outer(mk_worker *w, const float *a, int64_t lda, int64_t num, const float *g, int64_t ldg, int64_t ldw,
                  float *to)
{
    mk_outer p = {.num_k = num, .ldw = ldw, .rows = 1, .columns = w->of->e->tokens, .a_column = lda, .g_column = ldg};
    p.offsets = w->offsets;
    mk_outer_f32(&p, a, g, to);
}

static void block_forward(mk_worker *w, int64_t number, float *to)
{
    const mk_team *t = w->of;
    const mk_encoder *e = t->e;
    const mk_encoder_places *at = &t->at;
    const mk_encoder_room *in = &t->in;
    const int64_t L = e->tokens, E = e->width, F = e->inner, ld = in->ld, wide = E / e->heads;
    const float *weights = t->job->weights + at->blocks + number * at->block;
    const float *turned = t->turned + at->blocks + number * at->block;
    float *m = w->memory + in->blocks + number * in->block, *qkv = m + in->qkv, *keys = w->memory + in->turned;

    mk_layer_norm(m + in->in, L, E, e->eps, weights + at->norm1, m + in->moments1, m + in->normed1);
    product(w, m + in->normed1, E, turned + at->qkv, 3 * E, E, 3 * E, weights + at->qkv_bias, qkv, 3 * E, MK_STORE);
    mk_transpose_f32(qkv + E, L, E, 3 * E, keys, ld);
    for (int64_t h = 0; h < e->heads; h++) {
        float *share = m + in->share + h * L * ld;
        product(w, qkv + h * wide, 3 * E, keys + h * wide * ld, ld, wide, L, NULL, share, ld, MK_STORE);
        mk_softmax(share, L, L, ld, 1.0f / sqrtf((float)wide));
        product(w, share, ld, qkv + 2 * E + h * wide, 3 * E, L, wide, NULL, m + in->mixed + h * wide, E, MK_STORE);
    }
    product(w, m + in->mixed, E, turned + at->out, E, E, E, weights + at->out_bias, m + in->mid, E, MK_STORE);
    mk_add(m + in->mid, m + in->in, L * E);

    mk_layer_norm(m + in->mid, L, E, e->eps, weights + at->norm2, m + in->moments2, m + in->normed2);
    float *active = m + in->active, *bend = m + in->bend;
    product(w, m + in->normed2, E, turned + at->fc1, F, E, F, weights + at->fc1_bias, active, F, MK_STORE);
    for (int64_t i = 0; i < L * F; i += MK_LANES) { /* GELU, and its slope */
        vf x = load(active + i), density, below = mk_normal(x, &density);
        store(active + i, x * below);
        store(bend + i, below + x * density * 0.398942280f);
    }
    product(w, active, F, turned + at->fc2, E, F, E, weights + at->fc2_bias, to, E, MK_STORE);
    mk_add(to, m + in->mid, L * E);
}

/* Takes the slope at what a block gave back to what it was given, in place. */
static void block_backward(mk_worker *w, int64_t number, float *gradient)
{
    const mk_team *t = w->of;
    const mk_encoder *e = t->e;
    const mk_encoder_places *at = &t->at;
    const mk_encoder_room *in = &t->in;
    const int64_t L = e->tokens, E = e->width, F = e->inner, ld = in->ld, wide = E / e->heads;
    const float *weights = t->job->weights + at->blocks + number * at->block;
    float *own = gradient + at->blocks + number * at->block;
    float *m = w->memory + in->blocks + number * in->block, *slope = w->memory + in->slope;
    float *inner = w->memory + in->slope_inner, *side = w->memory + in->side;

    outer(w, slope, E, E, m + in->active, F, F, own + at->fc2);
    mk_add_rows(own + at->fc2_bias, slope, E, L);
    product(w, slope, E, weights + at->fc2, F, E, F, NULL, inner, F, MK_STORE);
    for (int64_t i = 0; i < L * F; i += MK_LANES)
        store(inner + i, load(inner + i) * load(m + in->bend + i));
    outer(w, inner, F, F, m + in->normed2, E, E, own + at->fc1);
    mk_add_rows(own + at->fc1_bias, inner, F, L);
    product(w, inner, F, weights + at->fc1, E, F, E, NULL, side, E, MK_STORE);
    mk_layer_norm_back(m + in->mid, L, E, weights + at->norm2, m + in->moments2, side, E, slope, own + at->norm2);

    outer(w, slope, E, E, m + in->mixed, E, E, own + at->out);
    mk_add_rows(own + at->out_bias, slope, E, L);
    product(w, slope, E, weights + at->out, E, E, E, NULL, side, E, MK_STORE);
    float *qkv = m + in->qkv, *slopes = w->memory + in->slope_qkv, *values = w->memory + in->turned;
    float *turned = w->memory + in->slope_turned, *change = w->memory + in->slope_share;
    mk_transpose_f32(qkv + 2 * E, L, E, 3 * E, values, ld);
    memset(turned, 0, (size_t)(2 * E * ld) * sizeof(float));
    for (int64_t h = 0; h < e->heads; h++) {
        const float *share = m + in->share + h * L * ld, *given = side + h * wide;
        product(w, given, E, values + h * wide * ld, ld, wide, L, NULL, change, ld, MK_STORE);
        mk_softmax_back(share, change, L, ld, 1.0f / sqrtf((float)wide));
        product(w, change, ld, qkv + E + h * wide, 3 * E, L, wide, NULL, slopes + h * wide, 3 * E, MK_STORE);
        outer(w, qkv + h * wide, 3 * E, wide, change, ld, ld, turned + h * wide * ld);
        outer(w, given, E, wide, share, ld, ld, turned + (E + h * wide) * ld);
    }
    mk_transpose_f32(turned, 2 * E, L, ld, slopes + E, 3 * E);
    outer(w, slopes, 3 * E, 3 * E, m + in->normed1, E, E, own + at->qkv);
    mk_add_rows(own + at->qkv_bias, slopes, 3 * E, L);
    product(w, slopes, 3 * E, weights + at->qkv, E, 3 * E, E, NULL, side, E, MK_STORE);
    mk_layer_norm_back(m + in->in, L, E, weights + at->norm1, m + in->moments1, side, E, slope, own + at->norm1);
}

static float *input_of(mk_worker *w, int64_t block)
{
    const mk_encoder_room *in = &w->of->in;
    return w->memory + (block < w->of->e->depth ? in->blocks + block * in->block + in->in : in->last);
}

/* Takes a row of x to its logits. */
void mk_encoder_forward(mk_worker *w, const float *x)
{
    const mk_team *t = w->of;
    const mk_encoder *e = t->e;
    const int64_t L = e->tokens, E = e->width, P = e->padded;
    const float *weights = t->job->weights;
    float *tokens = w->memory + t->in.x, *first = input_of(w, 0), *side = w->memory + t->in.side;
    for (int64_t m = 0; m < L; m++)
        for (int64_t i = 0; i < e->patch; i++) {
            int64_t from = e->where[m * e->patch + i];
            tokens[m * P + i] = from < 0 ? 0.0f : x[from];
        }
    product(w, tokens, P, t->turned + t->at.embed, E, P, E, weights + t->at.embed_bias, first, E, MK_STORE);
    mk_add(first, weights + t->at.position, L * E);
    for (int64_t b = 0; b < e->depth; b++)
        block_forward(w, b, input_of(w, b + 1));
    mk_layer_norm(input_of(w, e->depth), L, E, e->eps, weights + t->at.norm, w->memory + t->in.last_moments, side);
    float *pooled = w->memory + t->in.pooled, *logits = w->memory + t->in.logits;
    memset(pooled, 0, (size_t)E * sizeof(float));
    mk_add_rows(pooled, side, E, L);
    for (int64_t i = 0; i < E; i++)
        pooled[i] /= (float)L;
    for (int64_t c = 0; c < e->classes; c++) {
        vf sum[MK_PARTS] = {0};
        for (int64_t i = 0; i < E; i += 16)
            for (int n = 0; n < MK_PARTS; n++)
                sum[n] += load(weights + t->at.head + c * E + i + n * MK_LANES) * load(pooled + i + n * MK_LANES);
        logits[c] = mk_total(sum) + weights[t->at.head_bias + c];
    }
}

/* Takes the loss of a row, `scale` times, back to the row and to the gradient; gives it. */
double mk_encoder_backward(mk_worker *w, int64_t label, float scale, float *gradient, float *slopes)
{
    const mk_team *t = w->of;
    const mk_encoder *e = t->e;
    const int64_t L = e->tokens, E = e->width, P = e->padded;
    const float *weights = t->job->weights;
    float *logits = w->memory + t->in.logits, *at_logits = logits + e->classes;
    float *pooled = w->memory + t->in.pooled, *at_pooled = pooled + E, *slope = w->memory + t->in.slope;
    const double loss = mk_cross_entropy_f32(logits, e->classes, label, scale, at_logits);
    memset(at_pooled, 0, (size_t)E * sizeof(float));
    for (int64_t c = 0; c < e->classes; c++) {
        const float g = at_logits[c];
        gradient[t->at.head_bias + c] += g;
        for (int64_t i = 0; i < E; i += MK_LANES) {
            float *to = gradient + t->at.head + c * E + i;
            store(to, load(to) + g * load(pooled + i));
            store(at_pooled + i, load(at_pooled + i) + g / (float)L * load(weights + t->at.head + c * E + i));
        }
    }
    memset(slope, 0, (size_t)(L * E) * sizeof(float));
    mk_layer_norm_back(input_of(w, e->depth), L, E, weights + t->at.norm, w->memory + t->in.last_moments, at_pooled, 0, slope,
              gradient + t->at.norm);
    for (int64_t b = e->depth; b-- > 0;)
        block_backward(w, b, gradient);
    mk_add(gradient + t->at.position, slope, L * E);
    mk_add_rows(gradient + t->at.embed_bias, slope, E, L);
    outer(w, slope, E, E, w->memory + t->in.x, P, P, gradient + t->at.embed);
    float *back = w->memory + t->in.slope_inner;
    product(w, slope, E, weights + t->at.embed, P, E, P, NULL, back, P, MK_STORE);
    for (int64_t m = 0; m < L; m++)
        for (int64_t i = 0; i < e->patch; i++) {
            int64_t to = e->where[m * e->patch + i];
            if (to >= 0)
                slopes[to] = back[m * P + i];
        }
    return loss;
}
