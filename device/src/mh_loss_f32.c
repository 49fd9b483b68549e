#include "mh_f32.h"
#include "mh_math.h"

#include <stddef.h>

static float maximum(const float *x, uint32_t n)
{
    return x[mh_argmax_f32(x, n)];
}

/* Writes exp(x * factor - max) to e and gives their sum; `shift` becomes max. */
static float exponentials(const float *x, uint32_t n, float factor, float *e, float *shift)
{
    float sum = 0.0f, top = maximum(x, n) * factor;
    for (uint32_t i = 0; i < n; i++) {
        float v = mh_exp_f32(x[i] * factor - top);
        if (e)
            e[i] = v;
        sum += v;
    }
    *shift = top;
    return sum;
}

float mh_cross_entropy_f32(const float *logits, uint32_t n, int32_t y, float scale, float *g)
{
    if (y < 0) {
        if (g)
            for (uint32_t i = 0; i < n; i++)
                g[i] = 0.0f;
        return 0.0f;
    }
    float label = logits[y], top;
    float sum = exponentials(logits, n, 1.0f, g, &top);
    if (g) {
        float share = 1.0f / sum;
        for (uint32_t i = 0; i < n; i++)
            g[i] = (g[i] * share - ((int32_t)i == y ? 1.0f : 0.0f)) * scale;
    }
    return mh_log_f32(sum) - (label - top);
}

float mh_mse_f32(const float *logits, uint32_t n, int32_t y, float scale, float *g)
{
    float sum = 0.0f, factor = (2.0f / (float)n) * scale;
    for (uint32_t i = 0; i < n; i++) {
        float d = y < 0 ? 0.0f : logits[i] - ((int32_t)i == y ? 1.0f : 0.0f);
        sum += d * d;
        if (g)
            g[i] = d * factor;
    }
    return sum / (float)n;
}

float mh_distillation_f32(const float *logits, const float *soft, uint32_t n, int32_t y, float temperature,
                          float soft_weight, float scale, float *g, float *scratch)
{
    float hard = mh_cross_entropy_f32(logits, n, y, scale * (1.0f - soft_weight), g);
    float *teacher = scratch, *student = scratch + n;
    float factor = 1.0f / temperature, top_t, top_s, divergence = 0.0f;
    float sum_t = exponentials(soft, n, factor, teacher, &top_t);
    float sum_s = exponentials(logits, n, factor, student, &top_s);
    float share_t = 1.0f / sum_t, share_s = 1.0f / sum_s, log_t = mh_log_f32(sum_t), log_s = mh_log_f32(sum_s);
    float slope = (soft_weight * temperature) * scale;
    for (uint32_t i = 0; i < n; i++) {
        float p = teacher[i] * share_t;
        divergence += p * (((soft[i] * factor - top_t) - log_t) - ((logits[i] * factor - top_s) - log_s));
        if (g)
            g[i] += (student[i] * share_s - p) * slope;
    }
    return (1.0f - soft_weight) * hard + (soft_weight * (temperature * temperature)) * divergence;
}

float mh_mse_distillation_f32(const float *logits, const float *soft, uint32_t n, int32_t y, float soft_weight,
                              float scale, float *g)
{
    float hard = mh_mse_f32(logits, n, y, scale * (1.0f - soft_weight), g);
    float sum = 0.0f, factor = (2.0f / (float)n) * (scale * soft_weight);
    for (uint32_t i = 0; i < n; i++) {
        float d = logits[i] - soft[i];
        sum += d * d;
        if (g)
            g[i] += d * factor;
    }
    return (1.0f - soft_weight) * hard + soft_weight * (sum / (float)n);
}
