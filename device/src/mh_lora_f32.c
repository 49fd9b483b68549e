#include "mh_f32.h"

/* The place in an input channel of output position p. */
static uint32_t source(const mh_geometry *s, uint32_t p)
{
    return (p / s->ow) * s->sh * s->iw + (p % s->ow) * s->sw;
}

/* t[r][p] = sum over ic of a[r][i] * x[i][p] */
static void down(const mh_geometry *s, const float *x, const float *a, float *t, uint32_t rank)
{
    uint32_t positions = (uint32_t)s->oh * s->ow, plane = (uint32_t)s->ih * s->iw;
    for (uint32_t p = 0; p < positions; p++) {
        const float *at = x + source(s, p);
        for (uint32_t r = 0; r < rank; r++) {
            float sum = 0.0f;
            for (uint32_t i = 0; i < s->ic; i++)
                sum += a[r * s->ic + i] * at[i * plane];
            t[r * positions + p] = sum;
        }
    }
}

void mh_lora_f32(const mh_geometry *s, const float *x, const float *a, const float *b, float *y, uint32_t rank,
                 float scale, float *scratch)
{
    uint32_t positions = (uint32_t)s->oh * s->ow;
    down(s, x, a, scratch, rank);
    for (uint32_t o = 0; o < s->oc; o++)
        for (uint32_t p = 0; p < positions; p++) {
            float sum = 0.0f;
            for (uint32_t r = 0; r < rank; r++)
                sum += b[o * rank + r] * scratch[r * positions + p];
            y[o * positions + p] += scale * sum;
        }
}

void mh_lora_grad_f32(const mh_geometry *s, const float *g, const float *x, const float *a, const float *b, float *dx,
                      float *da, float *db, uint32_t rank, float scale, float *scratch)
{
    uint32_t positions = (uint32_t)s->oh * s->ow, plane = (uint32_t)s->ih * s->iw;
    if (db) {
        down(s, x, a, scratch, rank);
        for (uint32_t o = 0; o < s->oc; o++)
            for (uint32_t r = 0; r < rank; r++) {
                float sum = 0.0f;
                for (uint32_t p = 0; p < positions; p++)
                    sum += g[o * positions + p] * scratch[r * positions + p];
                db[o * rank + r] += scale * sum;
            }
    }
    if (!da && !dx)
        return;
    for (uint32_t r = 0; r < rank; r++)
        for (uint32_t p = 0; p < positions; p++) {
            float sum = 0.0f;
            for (uint32_t o = 0; o < s->oc; o++)
                sum += b[o * rank + r] * g[o * positions + p];
            scratch[r * positions + p] = scale * sum;
        }
    if (da)
        for (uint32_t r = 0; r < rank; r++)
            for (uint32_t i = 0; i < s->ic; i++) {
                float sum = 0.0f;
                for (uint32_t p = 0; p < positions; p++)
                    sum += scratch[r * positions + p] * x[i * plane + source(s, p)];
                da[r * s->ic + i] += sum;
            }
    if (dx)
        for (uint32_t i = 0; i < s->ic; i++)
            for (uint32_t p = 0; p < positions; p++) {
                float sum = 0.0f;
                for (uint32_t r = 0; r < rank; r++)
                    sum += a[r * s->ic + i] * scratch[r * positions + p];
                dx[i * plane + source(s, p)] += sum;
            }
}
