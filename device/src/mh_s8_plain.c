/* The plain kernels; the depthwise one also serves the MVE build where oc != ic. */
#include "mh_s8_inner.h"

static int8_t requantise(uint32_t sum, const mh_requant_s8 *t, const mh_range_s8 *range) {
    int32_t wide = (int32_t)(sum << ((uint32_t)t->shift & 31u));
    int32_t v = (int32_t)(((int64_t)wide * t->multiplier + 0x80000000ll) >> 32) + range->out_zero;
    v = v < range->low ? range->low : v;
    return (int8_t)(v > range->high ? range->high : v);
}

/* The taps [from, to) of a row, of a window that begins at `column`, that lie inside the map. */
typedef struct {
    uint32_t from, to;
} inside;

static inside columns(int32_t column, uint32_t step, uint32_t taps, uint32_t width) {
    inside in = {0, 0};
    while (in.from < taps && column < 0)
        column += (int32_t)step, in.from++;
    for (in.to = in.from; in.to < taps && column < (int32_t)width; in.to++)
        column += (int32_t)step;
    return in;
}

static uint32_t total(const int8_t *w, uint32_t n) {
    uint32_t sum = 0;
    for (; n; n--) {
        int32_t v = *w++;
        sum += (uint32_t)v;
    }
    return sum;
}

void mh_depthwise_plain_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                           const mh_range_s8 *range) {
    uint32_t times = s->ic ? (uint32_t)s->oc / s->ic : 0, kw = s->kw;
    int32_t zero = range->in_zero;
    uint32_t step = (uint32_t)s->dw * s->ic, line = (uint32_t)s->iw * s->ic;
    for (int32_t r = 0, top = -(int32_t)s->pt; r < s->oh; r++, top += s->sh)
        for (int32_t q = 0, left = -(int32_t)s->pl; q < s->ow; q++, left += s->sw) {
            inside rows = columns(top, s->dh, s->kh, s->ih), in = columns(left, s->dw, kw, s->iw);
            const int8_t *first = x, *tap = w;
            if (rows.to > rows.from && in.to > in.from)
                first += ((uint32_t)top + rows.from * s->dh) * line + ((uint32_t)left + in.from * s->dw) * s->ic;
            const mh_requant_s8 *t = table;
            for (uint32_t c = 0; c < s->ic; c++, first++)
                for (uint32_t m = 0; m < times; m++, t++) {
                    uint32_t sum = (uint32_t)t->bias + (uint32_t)zero * total(tap, rows.from * kw);
                    const int8_t *from = first;
                    tap += rows.from * kw;
                    for (uint32_t i = rows.from; i < rows.to; i++, from += line * s->dh) {
                        const int8_t *at = from;
                        uint32_t j = 0;
                        for (; j < in.from; j++)
                            sum += (uint32_t)(zero * *tap++);
                        for (; j < in.to; j++, at += step)
                            sum += (uint32_t)(*at * *tap++);
                        for (; j < kw; j++)
                            sum += (uint32_t)(zero * *tap++);
                    }
                    sum += (uint32_t)zero * total(tap, (s->kh - rows.to) * kw);
                    tap += (s->kh - rows.to) * kw;
                    *y++ = requantise(sum, t, range);
                }
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

/* Adds the products of x with two rows of weights that lie `apart`. */
static void dots(const int8_t *x, const int8_t *w, uint32_t apart, uint32_t n, uint32_t *first, uint32_t *second) {
    const int8_t *v = w + apart;
    uint32_t a = *first, b = *second;
    for (; n >= 4; n -= 4, x += 4, w += 4, v += 4) {
        int32_t x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
        a += (uint32_t)(x0 * w[0] + x1 * w[1] + x2 * w[2] + x3 * w[3]);
        b += (uint32_t)(x0 * v[0] + x1 * v[1] + x2 * v[2] + x3 * v[3]);
    }
    for (; n; n--, x++)
        a += (uint32_t)(*x * *w++), b += (uint32_t)(*x * *v++);
    *first = a, *second = b;
}

static void paddings(uint32_t zero, const int8_t *w, uint32_t apart, uint32_t n, uint32_t *first, uint32_t *second) {
    *first += zero * total(w, n), *second += zero * total(w + apart, n);
}

/* An odd last output goes along with itself. */
void mh_dense_s8(const int8_t *x, const int8_t *w, const void *table, int8_t *y, uint32_t num_in, uint32_t num_out,
                 const mh_range_s8 *range, void *scratch) {
    const mh_requant_s8 *t = table;
    (void)scratch;
    for (uint32_t o = 0; o < num_out; o += 2, t += 2, w += 2 * num_in) {
        uint32_t both = num_out - o > 1, a = (uint32_t)t[0].bias, b = (uint32_t)t[both].bias;
        dots(x, w, both * num_in, num_in, &a, &b);
        y[o] = requantise(a, t, range);
        y[o + both] = requantise(b, t + both, range);
    }
}

void mh_conv_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                const mh_range_s8 *range, void *scratch) {
    uint32_t ic = s->ic, row = (uint32_t)s->kw * ic, k = s->kh * row, zero = (uint32_t)range->in_zero;
    (void)scratch;
    for (int32_t r = 0, top = -(int32_t)s->pt; r < s->oh; r++, top += s->sh)
        for (int32_t q = 0, left = -(int32_t)s->pl; q < s->ow; q++, left += s->sw, y += s->oc) {
            const mh_requant_s8 *t = table;
            inside rows = columns(top, s->dh, s->kh, s->ih), in = columns(left, s->dw, s->kw, s->iw);
            uint32_t before = in.from * ic, num = (in.to - in.from) * ic;
            const int8_t *first = x, *tap = w;
            if (rows.to > rows.from && num)
                first += (((uint32_t)top + rows.from * s->dh) * s->iw + (uint32_t)left + in.from * s->dw) * ic;
            for (uint32_t o = 0; o < s->oc; o += 2, t += 2, tap += k) {
                uint32_t both = s->oc - o > 1, apart = both * k, a = (uint32_t)t[0].bias, b = (uint32_t)t[both].bias;
                const int8_t *from = first;
                paddings(zero, tap, apart, rows.from * row, &a, &b);
                tap += rows.from * row;
                for (uint32_t i = rows.from; i < rows.to; i++, tap += row, from += (uint32_t)s->dh * s->iw * ic) {
                    paddings(zero, tap, apart, before, &a, &b);
                    if (s->dw == 1)
                        dots(from, tap + before, apart, num, &a, &b);
                    else
                        for (uint32_t j = 0; j < num; j += ic)
                            dots(from + j * s->dw, tap + before + j, apart, ic, &a, &b);
                    paddings(zero, tap + before + num, apart, row - before - num, &a, &b);
                }
                paddings(zero, tap, apart, (s->kh - rows.to) * row, &a, &b);
                tap += (s->kh - rows.to) * row;
                y[o] = requantise(a, t, range);
                y[o + both] = requantise(b, t + both, range);
            }
        }
}

void mh_depthwise_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                     const mh_range_s8 *range, void *scratch) {
    (void)scratch;
    mh_depthwise_plain_s8(s, x, w, table, y, range);
}

#endif
