#include "kernel.h"

#include <math.h>

static float largest(const float *z, int64_t n)
{
    float top = z[0];
    for (int64_t i = 1; i < n; i++)
        top = z[i] > top || z[i] != z[i] ? z[i] : top; /* NaN stays */
    return top;
}

double mk_cross_entropy_f32(const float *z, int64_t n, int64_t y, float scale, float *g)
{
    float top = largest(z, n), sum = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        g[i] = expf(z[i] - top);
        sum += g[i];
    }
    float share = y < 0 ? 0.0f : scale / sum;
    for (int64_t i = 0; i < n; i++)
        g[i] *= share;
    if (y >= 0)
        g[y] -= scale;
    /* As torch has it: 0 times the loss of some class where there is no label. */
    return y < 0 ? 0.0 * (double)(logf(sum) - (z[0] - top)) : (double)(logf(sum) - (z[y] - top));
}

double mk_mse_f32(const float *z, int64_t n, int64_t y, const float *target, float scale, float *g)
{
    float sum = 0.0f, factor = 2.0f / (float)n * scale, kept = target || y >= 0 ? 1.0f : 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float d = (z[i] - (target ? *target : i == y ? 1.0f : 0.0f)) * kept;
        sum += d * d;
        g[i] = d * factor;
    }
    return (double)(sum / (float)n);
}

/* Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section 2. */
double mk_distillation_f32(const float *z, const float *soft, int64_t n, int64_t y, float temperature, float weight,
                           float scale, float *g)
{
    double hard = mk_cross_entropy_f32(z, n, y, scale * (1.0f - weight), g);
    float top_z = largest(z, n) / temperature, top_s = largest(soft, n) / temperature, sum_z = 0.0f, sum_s = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        sum_z += expf(z[i] / temperature - top_z);
        sum_s += expf(soft[i] / temperature - top_s);
    }
    float log_z = logf(sum_z), log_s = logf(sum_s), apart = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float teacher = soft[i] / temperature - top_s - log_s, student = z[i] / temperature - top_z - log_z;
        float p = expf(teacher);
        apart += p * (teacher - student);
        g[i] += scale * weight * temperature * (expf(student) - p);
    }
    return (1.0 - (double)weight) * hard + (double)(weight * temperature * temperature * apart);
}
