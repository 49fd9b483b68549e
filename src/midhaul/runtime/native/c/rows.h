#ifndef MK_ROWS_H
#define MK_ROWS_H

#include "vector.h"

/* Sums and functions along a row of numbers. A sum has 16 parts, whatever the width of the vectors, so that no result
   depends on it; rows are multiples of 16 long. */

#define MK_PARTS (16 / MK_LANES)

MK_INLINE float mk_total(const vf *part)
{
    float f[16];
    memcpy(f, part, sizeof f);
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++)
            f[i] += f[i + n];
    return f[0];
}

/* e^x to about a unit in the last place; 0 below -87. By Cody and Waite, with the polynomial of Cephes' expf. */
MK_INLINE vf mk_exp(vf x)
{
    const vf magic = all(12582912.0f); /* adding it rounds to whole numbers */
    vf top = choose(x > 88.0f, all(88.0f), x), shifted = top * 1.44269504f + magic, n = shifted - magic;
    vf r = top - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vi exponent = ((vi)shifted - (vi)magic + 127) << 23;
    return choose(x < -87.0f, (vf){0}, p * (vf)exponent);
}

/* The normal distribution's share below x; `density` is e^(-x^2/2). Abramowitz and Stegun, 7.1.26: within 1e-7. */
MK_INLINE vf mk_normal(vf x, vf *density)
{
    vf z = choose(x < 0.0f, -x, x) * 0.707106781f, t = 1.0f / (1.0f + 0.3275911f * z), e = mk_exp(-(z * z));
    vf p = all(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vf beyond = 0.5f * p * t * e;
    *density = e;
    return choose(x < 0.0f, beyond, 1.0f - beyond);
}

/* What follows is for rows of `width` or `ld` numbers one behind another, `num` of them. */

/* to += from, and to[width] += each row of from. */
void mk_add(float *to, const float *from, int64_t num);
void mk_add_rows(float *to, const float *from, int64_t width, int64_t num);

/* y = (x - mean) / deviation * weight + bias; weight: [2][width], with the bias; moments: [num][2], mean and 1 / deviation.
   Back: adds to dx the slope at x, and to slope [2][width] those at weight and bias. `step` is from one row's slope at y to
   the next's: 0 if all have one. */
void mk_layer_norm(const float *x, int64_t num, int64_t width, float eps, const float *weight, float *moments, float *y);
void mk_layer_norm_back(const float *x, int64_t num, int64_t width, const float *weight, const float *moments,
                        const float *dy, int64_t step, float *dx, float *slope);

/* Makes each row the softmax of `scale` times its first `length` numbers, and 0 behind them. Back: makes the slopes at the
   shares those at what it took. */
void mk_softmax(float *rows, int64_t num, int64_t length, int64_t ld, float scale);
void mk_softmax_back(const float *share, float *slope, int64_t num, int64_t ld, float scale);

#endif
