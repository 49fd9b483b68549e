#include "mh_f32.h"

void mh_dense_f32(const float *restrict x, const float *restrict w, const float *restrict b, float *restrict y,
                  uint32_t num_in, uint32_t num_out)
{
    for (uint32_t o = 0; o < num_out; o++) {
        float s = b ? b[o] : 0.0f;
        for (uint32_t i = 0; i < num_in; i++)
            s += w[o * num_in + i] * x[i];
        y[o] = s;
    }
}

void mh_dense_input_f32(const float *restrict g, const float *restrict w, float *restrict dx, uint32_t num_in,
                        uint32_t num_out, int adds)
{
    for (uint32_t i = 0; i < num_in; i++) {
        float s = 0.0f;
        for (uint32_t o = 0; o < num_out; o++)
            s += w[o * num_in + i] * g[o];
        dx[i] = adds ? dx[i] + s : s;
    }
}

void mh_dense_params_f32(const float *restrict g, const float *restrict x, float *restrict dw, float *restrict db,
                         uint32_t num_in, uint32_t num_out)
{
    for (uint32_t o = 0; o < num_out; o++) {
        if (dw)
            for (uint32_t i = 0; i < num_in; i++)
                dw[o * num_in + i] += g[o] * x[i];
        if (db)
            db[o] += g[o];
    }
}
