#include "kernel.h"

#include <math.h>

/* The largest number; NaN if one is. No branch in it: which of some classes is likeliest can't be foreseen. */
static float largest(const float *z, int64_t n)
{
    float top = z[0];
    int odd = 0;
    for (int64_t i = 0; i < n; i++) {
        odd |= z[i] != z[i];
        top = z[i] > top ? z[i] : top;
    }
    return odd ? NAN : top;
}

/* e^x for x up to 0, within 1.5 units in the last place; 0 below the smallest normal number. e^x = 2^n e^r with n a whole
   number and r within half of ln 2, for which seven terms of the series leave 5e-9. */
MK_INLINE vf exponential(vf x)
{
    const vf magic = all(12582912.0f); /* 1.5 2^23: a number added to it is rounded, and whole in the last bits */
    vf low = choose(x < -87.0f, all(-87.0f), x), shifted = low * 1.44269504f + magic, n = shifted - magic;
    vf r = (low - n * 0.693145751953125f) - n * 1.42860677e-6f;
    vf sum = all(1.0f / 5040.0f);
    sum = sum * r + 1.0f / 720.0f;
    sum = sum * r + 1.0f / 120.0f;
    sum = sum * r + 1.0f / 24.0f;
    sum = sum * r + 1.0f / 6.0f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    vu power = ((vu)shifted - (vu)magic + 127u) << 23;
    return choose(x < -87.0f, (vf){0}, sum * (vf)power);
}

double mk_cross_entropy_f32(const float *z, int64_t n, int64_t y, float scale, float *g)
{
    float top = largest(z, n), sum = 0.0f, lanes[MK_LANES];
    vf e = {0};
    for (int64_t i = 0; i < n; i += MK_LANES) {
        int num = mk_lanes(n, i);
        e = exponential(load_first(z + i, num) - top);
        memcpy(lanes, &e, sizeof e); /* whole: numbers of a masked store can't be read at once */
        for (int k = 0; k < num; k++)
            sum += lanes[k];
        if (n > MK_LANES)
            store_first(g + i, e, num);
    }
    const vf share = all(y < 0 ? 0.0f : scale / sum);
    for (int64_t i = 0; i < n; i += MK_LANES) {
        int num = mk_lanes(n, i);
        vf slope = (n > MK_LANES ? load_first(g + i, num) : e) * share;
        if (y >= i && y < i + num)
            slope[y - i] -= scale;
        store_first(g + i, slope, num);
    }
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
