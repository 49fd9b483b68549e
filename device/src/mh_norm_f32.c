#include "mh_f32.h"
#include "mh_math.h"

static void moments(const float *x, uint32_t n, float eps, float *mean, float *rstd)
{
    float sum = 0.0f, squares = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i];
    *mean = sum / (float)n;
    for (uint32_t i = 0; i < n; i++) {
        float d = x[i] - *mean;
        squares += d * d;
    }
    *rstd = 1.0f / mh_sqrt_f32(squares / (float)n + eps);
}

void mh_group_norm_f32(const float *x, const float *weight, const float *bias, float *y, uint32_t c, uint32_t positions,
                       uint32_t groups, float eps)
{
    uint32_t together = c / groups;
    for (uint32_t first = 0; first < c; first += together) {
        float mean, rstd;
        moments(x + first * positions, together * positions, eps, &mean, &rstd);
        for (uint32_t k = first; k < first + together; k++)
            for (uint32_t p = k * positions; p < (k + 1) * positions; p++) {
                float v = (x[p] - mean) * rstd;
                if (weight)
                    v = v * weight[k];
                y[p] = bias ? v + bias[k] : v;
            }
    }
}

void mh_group_norm_grad_f32(const float *x, const float *weight, const float *g, float *dx, float *dweight, float *dbias,
                            uint32_t c, uint32_t positions, uint32_t groups, float eps, int adds)
{
    uint32_t together = c / groups;
    float n = (float)(together * positions);
    for (uint32_t first = 0; first < c; first += together) {
        float mean, rstd, slope = 0.0f, turn = 0.0f;
        moments(x + first * positions, together * positions, eps, &mean, &rstd);
        for (uint32_t k = first; k < first + together; k++) {
            float sum = 0.0f, product = 0.0f;
            for (uint32_t p = k * positions; p < (k + 1) * positions; p++) {
                float xhat = (x[p] - mean) * rstd, u = weight ? g[p] * weight[k] : g[p];
                sum += g[p];
                product += g[p] * xhat;
                slope += u;
                turn += u * xhat;
            }
            if (dweight)
                dweight[k] += product;
            if (dbias)
                dbias[k] += sum;
        }
        if (!dx)
            continue;
        slope = slope / n;
        turn = turn / n;
        for (uint32_t k = first; k < first + together; k++)
            for (uint32_t p = k * positions; p < (k + 1) * positions; p++) {
                float xhat = (x[p] - mean) * rstd, u = weight ? g[p] * weight[k] : g[p];
                float v = ((u - slope) - xhat * turn) * rstd;
                dx[p] = adds ? dx[p] + v : v;
            }
    }
}
