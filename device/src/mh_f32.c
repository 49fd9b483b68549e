#include "mh_f32.h"
#include "mh_vfp_f32.h"

void mh_clamp_f32(const float *x, float *y, uint32_t n, float low, float high)
{
    for (uint32_t i = 0; i < n; i++) {
        float v = x[i];
        v = v < low ? low : v;
        y[i] = v > high ? high : v;
    }
}

void mh_clamp_grad_f32(const float *y, const float *g, float *dx, uint32_t n, float low, float high, int adds)
{
    for (uint32_t i = 0; i < n; i++) {
        float v = y[i] > low && y[i] < high ? g[i] : 0.0f;
        dx[i] = adds ? dx[i] + v : v;
    }
}

void mh_add_f32(const float *a, const float *b, float *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

void mh_copy_f32(const float *g, float *dx, uint32_t n, int adds)
{
    for (uint32_t i = 0; i < n; i++)
        dx[i] = adds ? dx[i] + g[i] : g[i];
}

uint32_t mh_argmax_f32(const float *x, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

void mh_sgd_f32(float *restrict w, const float *restrict sum, float *restrict velocity, const float *restrict start,
                uint32_t n, float lr, float momentum, float decay, float mu)
{
    uint32_t i = 0;
    if (momentum == 0.0f && decay == 0.0f && mu == 0.0f) {
#ifdef MH_VFP
        if (n >= 4) {
            i = n & ~3u;
            mh_vfp_add_scaled(w, sum, -lr, i); /* w - a is w + (-a), to the bit */
        }
#endif
        for (; i < n; i++)
            w[i] -= lr * sum[i];
        return;
    }
    for (; i < n; i++) {
        float slope = sum[i];
        if (mu != 0.0f)
            slope += mu * (w[i] - start[i]);
        if (decay != 0.0f)
            slope += decay * w[i];
        if (momentum != 0.0f) {
            slope = velocity[i] * momentum + slope;
            velocity[i] = slope;
        }
        w[i] -= lr * slope;
    }
}
