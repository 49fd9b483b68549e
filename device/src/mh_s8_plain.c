/* The plain kernels; the depthwise one also serves the MVE build where oc != ic. */
#include "mh_s8_inner.h"

static int8_t requantise(uint32_t sum, const mh_requant_s8 *t, const mh_range_s8 *range) {
    int32_t wide = (int32_t)(sum << ((uint32_t)t->shift & 31u));
    int32_t v = (int32_t)(((int64_t)wide * t->multiplier + 0x80000000ll) >> 32) + range->out_zero;
    v = v < range->low ? range->low : v;
    return (int8_t)(v > range->high ? range->high : v);
}

void mh_depthwise_plain_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                           const mh_range_s8 *range) {
    const mh_requant_s8 *t = table;
    uint32_t times = s->ic ? (uint32_t)s->oc / s->ic : 0;
    for (int32_t r = 0; r < s->oh; r++)
        for (int32_t q = 0; q < s->ow; q++)
            for (uint32_t o = 0; o < s->ic * times; o++) {
                uint32_t sum = (uint32_t)t[o].bias;
                const int8_t *tap = w + o * s->kh * s->kw;
                for (int32_t i = 0; i < s->kh; i++) {
                    int32_t row = r * s->sh - s->pt + i * s->dh;
                    for (int32_t j = 0; j < s->kw; j++) {
                        int32_t column = q * s->sw - s->pl + j * s->dw;
                        int inside = row >= 0 && row < s->ih && column >= 0 && column < s->iw;
                        int32_t v = range->in_zero;
                        if (inside)
                            v = x[((uint32_t)row * s->iw + (uint32_t)column) * s->ic + o / times];
                        sum += (uint32_t)(v * *tap++);
                    }
                }
                *y++ = requantise(sum, t + o, range);
            }
}

#if !defined(MH_S8_DSP) && !defined(MH_S8_MVE)

void mh_dense_sizes_s8(uint32_t num_in, uint32_t num_out, mh_sizes_s8 *sizes) {
    sizes->weight_bytes = mh_bytes_s8(num_out, num_in, 1);
    sizes->requant_bytes = mh_bytes_s8(num_out, sizeof(mh_requant_s8), 1);
    sizes->scratch_bytes = 0;
}

void mh_conv_sizes_s8(const mh_geometry *s, mh_sizes_s8 *sizes) {
    mh_dense_sizes_s8((uint32_t)s->kh * s->kw * s->ic, s->oc, sizes);
}

void mh_depthwise_sizes_s8(const mh_geometry *s, mh_sizes_s8 *sizes) {
    mh_dense_sizes_s8((uint32_t)s->kh * s->kw, s->oc, sizes);
}

static uint32_t dot(const int8_t *x, const int8_t *w, uint32_t n, uint32_t sum) {
    for (; n >= 4; n -= 4, x += 4, w += 4)
        sum += (uint32_t)(x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3]);
    for (; n; n--)
        sum += (uint32_t)(*x++ * *w++);
    return sum;
}

void mh_dense_s8(const int8_t *x, const int8_t *w, const void *table, int8_t *y, uint32_t num_in, uint32_t num_out,
                 const mh_range_s8 *range, void *scratch) {
    const mh_requant_s8 *t = table;
    (void)scratch;
    for (uint32_t o = 0; o < num_out; o++, t++, w += num_in)
        *y++ = requantise(dot(x, w, num_in, (uint32_t)t->bias), t, range);
}

void mh_conv_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                const mh_range_s8 *range, void *scratch) {
    uint32_t ic = s->ic;
    (void)scratch;
    for (int32_t r = 0; r < s->oh; r++)
        for (int32_t q = 0; q < s->ow; q++) {
            const mh_requant_s8 *t = table;
            const int8_t *tap = w;
            for (uint32_t o = 0; o < s->oc; o++, t++) {
                uint32_t sum = (uint32_t)t->bias;
                for (int32_t i = 0; i < s->kh; i++) {
                    int32_t row = r * s->sh - s->pt + i * s->dh;
                    for (int32_t j = 0; j < s->kw; j++, tap += ic) {
                        int32_t column = q * s->sw - s->pl + j * s->dw;
                        if (row >= 0 && row < s->ih && column >= 0 && column < s->iw)
                            sum = dot(x + ((uint32_t)row * s->iw + (uint32_t)column) * ic, tap, ic, sum);
                        else
                            for (uint32_t c = 0; c < ic; c++)
                                sum += (uint32_t)(range->in_zero * tap[c]);
                    }
                }
                *y++ = requantise(sum, t, range);
            }
        }
}

void mh_depthwise_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                     const mh_range_s8 *range, void *scratch) {
    (void)scratch;
    mh_depthwise_plain_s8(s, x, w, table, y, range);
}

#endif
