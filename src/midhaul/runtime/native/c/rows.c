#include "rows.h"

#include <math.h>

void mk_add(float *to, const float *from, int64_t num)
{
    for (int64_t i = 0; i < num; i += MK_LANES)
        store(to + i, load(to + i) + load(from + i));
}

void mk_add_rows(float *to, const float *from, int64_t width, int64_t num)
{
    for (int64_t m = 0; m < num; m++)
        mk_add(to, from + m * width, width);
}

void mk_layer_norm(const float *x, int64_t num, int64_t width, float eps, const float *weight, float *moments, float *y)
{
    for (int64_t m = 0; m < num; m++, x += width, y += width, moments += 2) {
        vf sum[MK_PARTS] = {0}, squares[MK_PARTS] = {0};
        for (int64_t i = 0; i < width; i += 16)
            for (int n = 0; n < MK_PARTS; n++)
                sum[n] += load(x + i + n * MK_LANES);
        const float mean = mk_total(sum) / (float)width;
        for (int64_t i = 0; i < width; i += 16)
            for (int n = 0; n < MK_PARTS; n++) {
                vf apart = load(x + i + n * MK_LANES) - mean;
                squares[n] += apart * apart;
            }
        const float scale = 1.0f / sqrtf(mk_total(squares) / (float)width + eps);
        for (int64_t i = 0; i < width; i += MK_LANES)
            store(y + i, (load(x + i) - mean) * scale * load(weight + i) + load(weight + width + i));
        moments[0] = mean;
        moments[1] = scale;
    }
}

void mk_layer_norm_back(const float *x, int64_t num, int64_t width, const float *weight, const float *moments,
                        const float *dy, int64_t step, float *dx, float *slope)
{
    for (int64_t m = 0; m < num; m++, x += width, dx += width, dy += step, moments += 2) {
        const float mean = moments[0], scale = moments[1];
        vf sum[MK_PARTS] = {0}, along[MK_PARTS] = {0};
        for (int64_t i = 0; i < width; i += 16)
            for (int n = 0; n < MK_PARTS; n++) {
                const int64_t k = i + n * MK_LANES;
                vf g = load(dy + k), hat = (load(x + k) - mean) * scale, inner = g * load(weight + k);
                store(slope + k, load(slope + k) + g * hat);
                store(slope + width + k, load(slope + width + k) + g);
                sum[n] += inner;
                along[n] += inner * hat;
            }
        const float a = mk_total(sum) / (float)width, b = mk_total(along) / (float)width;
        for (int64_t i = 0; i < width; i += MK_LANES) {
            vf hat = (load(x + i) - mean) * scale;
            store(dx + i, load(dx + i) + (load(dy + i) * load(weight + i) - a - hat * b) * scale);
        }
    }
}

void mk_softmax(float *rows, int64_t num, int64_t length, int64_t ld, float scale)
{
    for (int64_t m = 0; m < num; m++, rows += ld) {
        for (int64_t i = length; i < ld; i++)
            rows[i] = -INFINITY;
        vf top[MK_PARTS], sum[MK_PARTS] = {0};
        for (int n = 0; n < MK_PARTS; n++)
            top[n] = all(-INFINITY);
        for (int64_t i = 0; i < ld; i += 16)
            for (int n = 0; n < MK_PARTS; n++) {
                vf v = load(rows + i + n * MK_LANES);
                top[n] = choose(v > top[n], v, top[n]);
            }
        float each[16], most = -INFINITY;
        memcpy(each, top, sizeof each);
        for (int i = 0; i < 16; i++)
            most = each[i] > most ? each[i] : most;
        for (int64_t i = 0; i < ld; i += 16)
            for (int n = 0; n < MK_PARTS; n++) {
                float *at = rows + i + n * MK_LANES;
                vf v = mk_exp((load(at) - most) * scale);
                store(at, v);
                sum[n] += v;
            }
        const float share = 1.0f / mk_total(sum);
        for (int64_t i = 0; i < ld; i += MK_LANES)
            store(rows + i, load(rows + i) * share);
    }
}

void mk_softmax_back(const float *share, float *slope, int64_t num, int64_t ld, float scale)
{
    for (int64_t m = 0; m < num; m++, share += ld, slope += ld) {
        vf sum[MK_PARTS] = {0};
        for (int64_t i = 0; i < ld; i += 16)
            for (int n = 0; n < MK_PARTS; n++)
                sum[n] += load(share + i + n * MK_LANES) * load(slope + i + n * MK_LANES);
        const float mean = mk_total(sum);
        for (int64_t i = 0; i < ld; i += MK_LANES)
            store(slope + i, load(share + i) * (load(slope + i) - mean) * scale);
    }
}
