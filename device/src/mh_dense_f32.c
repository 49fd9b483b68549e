#include "mh_f32.h"
#include "mh_lanes_f32.h"
#include "mh_vfp_f32.h"

/* `rows` outputs at once, each a sum of its own. */
MH_INLINE void dots(const float *x, const float *w, const float *b, float *y, uint32_t num_in, int rows)
{
    float sum[8];
    uint32_t i = 0;
    MH_UNROLL
    for (int m = 0; m < rows; m++)
        sum[m] = b ? b[m] : 0.0f;
#ifdef MH_VFP
    if (rows == 4 && num_in >= 4) {
        i = num_in & ~3u;
        mh_vfp_dots(x, w, num_in, i, sum);
    }
#else
    for (; i + 4 <= num_in; i += 4)
        MH_UNROLL
        for (uint32_t j = i; j < i + 4; j++)
            MH_UNROLL
            for (int m = 0; m < rows; m++)
                sum[m] += w[(uint32_t)m * num_in + j] * x[j];
#endif
    for (; i < num_in; i++)
        MH_UNROLL
        for (int m = 0; m < rows; m++)
            sum[m] += w[(uint32_t)m * num_in + i] * x[i];
    MH_UNROLL
    for (int m = 0; m < rows; m++)
        y[m] = sum[m];
}

void mh_dense_f32(const float *x, const float *w, const float *b, float *y, uint32_t num_in, uint32_t num_out)
{
    uint32_t o = 0;
#if MH_LANES == 8
    for (; o + 8 <= num_out; o += 8)
        dots(x, w + o * num_in, b ? b + o : b, y + o, num_in, 8);
#endif
    for (; o + 4 <= num_out; o += 4)
        dots(x, w + o * num_in, b ? b + o : b, y + o, num_in, 4);
    if (o + 2 <= num_out) {
        dots(x, w + o * num_in, b ? b + o : b, y + o, num_in, 2);
        o += 2;
    }
    if (o < num_out)
        dots(x, w + o * num_in, b ? b + o : b, y + o, num_in, 1);
}

void mh_dense_input_f32(const float *g, const float *w, float *dx, uint32_t num_in, uint32_t num_out, int adds)
{
    uint32_t i = 0;
#ifdef MH_VFP
    for (; i + 8 <= num_in && num_out; i += 8) {
        float sum[8] = {0.0f};
        mh_vfp_columns(g, w + i, num_in, num_out, sum);
        for (uint32_t j = 0; j < 8; j++)
            dx[i + j] = adds ? dx[i + j] + sum[j] : sum[j];
    }
#endif
    for (; i + MH_LANES <= num_in; i += MH_LANES) {
        mh_lanes sum = mh_lanes_set(0.0f);
        for (uint32_t o = 0; o < num_out; o++)
            sum = mh_lanes_add(sum, mh_lanes_mul(mh_lanes_load(w + o * num_in + i, 1), g[o]));
        if (adds)
            sum = mh_lanes_add(mh_lanes_load(dx + i, 1), sum);
        mh_lanes_store(dx + i, 1, sum);
    }
    for (; i < num_in; i++) {
        float sum = 0.0f;
        for (uint32_t o = 0; o < num_out; o++)
            sum += w[o * num_in + i] * g[o];
        dx[i] = adds ? dx[i] + sum : sum;
    }
}

void mh_dense_params_f32(const float *g, const float *x, float *dw, float *db, uint32_t num_in, uint32_t num_out)
{
    for (uint32_t o = 0; o < num_out && dw; o++, dw += num_in) {
        uint32_t i = 0;
#ifdef MH_VFP
        if (num_in >= 4) {
            i = num_in & ~3u;
            mh_vfp_add_scaled(dw, x, g[o], i);
        }
#else
        for (; i + MH_LANES <= num_in; i += MH_LANES)
            mh_lanes_store(dw + i, 1, mh_lanes_add(mh_lanes_load(dw + i, 1), mh_lanes_mul(mh_lanes_load(x + i, 1), g[o])));
#endif
        for (; i < num_in; i++)
            dw[i] += g[o] * x[i];
    }
    for (uint32_t o = 0; o < num_out && db; o++)
        db[o] += g[o];
}
