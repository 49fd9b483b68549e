#include "mh_f32.h"

/* The part of a window that lies inside the map: taps [first, last) of one axis, and where tap 0 is. */
typedef struct {
    int32_t at, first, last;
} taps;

static taps inside(int32_t out, int32_t stride, int32_t pad, int32_t dilation, int32_t kernel, int32_t size)
{
    taps t = {out * stride - pad, 0, kernel};
    while (t.first < kernel && t.at + t.first * dilation < 0)
        t.first++;
    while (t.last > t.first && t.at + (t.last - 1) * dilation >= size)
        t.last--;
    return t;
}

/* The place of the first of the largest numbers in a window of one channel; 0 for a window without a tap inside. */
static int32_t largest(const mh_geometry *s, const float *x, taps h, taps w)
{
    int32_t best = -1;
    for (int32_t kh = h.first; kh < h.last; kh++)
        for (int32_t kw = w.first; kw < w.last; kw++) {
            int32_t at = (h.at + kh * s->dh) * s->iw + w.at + kw * s->dw;
            if (best < 0 || x[at] > x[best])
                best = at;
        }
    return best < 0 ? 0 : best;
}

static void zero(const mh_geometry *s, float *dx, int adds)
{
    uint32_t n = (uint32_t)s->ic * s->ih * s->iw;
    for (uint32_t i = 0; !adds && i < n; i++)
        dx[i] = 0.0f;
}

void mh_max_pool_f32(const mh_geometry *s, const float *x, float *y)
{
    for (int32_t c = 0; c < s->ic; c++, x += s->ih * s->iw)
        for (int32_t oh = 0; oh < s->oh; oh++) {
            taps h = inside(oh, s->sh, s->pt, s->dh, s->kh, s->ih);
            for (int32_t ow = 0; ow < s->ow; ow++)
                *y++ = x[largest(s, x, h, inside(ow, s->sw, s->pl, s->dw, s->kw, s->iw))];
        }
}

void mh_max_pool_input_f32(const mh_geometry *s, const float *g, const float *x, float *dx, int adds)
{
    zero(s, dx, adds);
    for (int32_t c = 0; c < s->ic; c++, x += s->ih * s->iw, dx += s->ih * s->iw)
        for (int32_t oh = 0; oh < s->oh; oh++) {
            taps h = inside(oh, s->sh, s->pt, s->dh, s->kh, s->ih);
            for (int32_t ow = 0; ow < s->ow; ow++)
                dx[largest(s, x, h, inside(ow, s->sw, s->pl, s->dw, s->kw, s->iw))] += *g++;
        }
}

void mh_average_pool_f32(const mh_geometry *s, const float *x, float *y)
{
    for (int32_t c = 0; c < s->ic; c++, x += s->ih * s->iw)
        for (int32_t oh = 0; oh < s->oh; oh++) {
            taps h = inside(oh, s->sh, s->pt, s->dh, s->kh, s->ih);
            for (int32_t ow = 0; ow < s->ow; ow++) {
                taps w = inside(ow, s->sw, s->pl, s->dw, s->kw, s->iw);
                float sum = 0.0f;
                for (int32_t kh = h.first; kh < h.last; kh++) {
                    const float *row = x + (h.at + kh * s->dh) * s->iw + w.at;
                    for (int32_t kw = w.first; kw < w.last; kw++)
                        sum += row[kw * s->dw];
                }
                *y++ = sum * (1.0f / (float)((h.last - h.first) * (w.last - w.first)));
            }
        }
}

void mh_average_pool_input_f32(const mh_geometry *s, const float *g, float *dx, int adds)
{
    zero(s, dx, adds);
    for (int32_t c = 0; c < s->ic; c++, dx += s->ih * s->iw)
        for (int32_t oh = 0; oh < s->oh; oh++) {
            taps h = inside(oh, s->sh, s->pt, s->dh, s->kh, s->ih);
            for (int32_t ow = 0; ow < s->ow; ow++) {
                taps w = inside(ow, s->sw, s->pl, s->dw, s->kw, s->iw);
                float share = *g++ * (1.0f / (float)((h.last - h.first) * (w.last - w.first)));
                for (int32_t kh = h.first; kh < h.last; kh++) {
                    float *row = dx + (h.at + kh * s->dh) * s->iw + w.at;
                    for (int32_t kw = w.first; kw < w.last; kw++)
                        row[kw * s->dw] += share;
                }
            }
        }
}
