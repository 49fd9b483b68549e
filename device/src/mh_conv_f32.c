#include "mh_f32.h"

/* A convolution and a depthwise one differ only in the input channels that an output channel reads: [first, first + num). */

static int32_t first_in(const mh_geometry *s, int32_t oc, int depthwise)
{
    return depthwise ? oc / (s->oc / s->ic) : 0;
}

static void forward(const mh_geometry *s, const float *x, const float *w, const float *b, float *y, int depthwise)
{
    int32_t num = depthwise ? 1 : s->ic;
    for (int32_t oc = 0; oc < s->oc; oc++)
        for (int32_t oh = 0; oh < s->oh; oh++)
            for (int32_t ow = 0; ow < s->ow; ow++) {
                float sum = b ? b[oc] : 0.0f;
                for (int32_t c = 0; c < num; c++)
                    for (int32_t kh = 0; kh < s->kh; kh++) {
                        int32_t ih = oh * s->sh - s->pt + kh * s->dh;
                        if (ih < 0 || ih >= s->ih)
                            continue;
                        for (int32_t kw = 0; kw < s->kw; kw++) {
                            int32_t iw = ow * s->sw - s->pl + kw * s->dw;
                            if (iw < 0 || iw >= s->iw)
                                continue;
                            sum += w[((oc * num + c) * s->kh + kh) * s->kw + kw] *
                                   x[((first_in(s, oc, depthwise) + c) * s->ih + ih) * s->iw + iw];
                        }
                    }
                y[(oc * s->oh + oh) * s->ow + ow] = sum;
            }
}

static void input(const mh_geometry *s, const float *g, const float *w, float *dx, int adds, int depthwise)
{
    int32_t num = depthwise ? 1 : s->ic, times = depthwise ? s->oc / s->ic : s->oc;
    for (int32_t ic = 0; ic < s->ic; ic++)
        for (int32_t ih = 0; ih < s->ih; ih++)
            for (int32_t iw = 0; iw < s->iw; iw++) {
                float sum = 0.0f;
                int32_t from = depthwise ? ic * times : 0;
                for (int32_t oc = from; oc < from + times; oc++)
                    for (int32_t kh = 0; kh < s->kh; kh++) {
                        int32_t up = ih + s->pt - kh * s->dh;
                        if (up < 0 || up % s->sh || up / s->sh >= s->oh)
                            continue;
                        for (int32_t kw = 0; kw < s->kw; kw++) {
                            int32_t left = iw + s->pl - kw * s->dw;
                            if (left < 0 || left % s->sw || left / s->sw >= s->ow)
                                continue;
                            sum += w[((oc * num + (depthwise ? 0 : ic)) * s->kh + kh) * s->kw + kw] *
                                   g[(oc * s->oh + up / s->sh) * s->ow + left / s->sw];
                        }
                    }
                float *at = &dx[(ic * s->ih + ih) * s->iw + iw];
                *at = adds ? *at + sum : sum;
            }
}

static void params(const mh_geometry *s, const float *g, const float *x, float *dw, float *db, int depthwise)
{
    int32_t num = depthwise ? 1 : s->ic;
    for (int32_t oc = 0; oc < s->oc; oc++) {
        const float *row = &g[oc * s->oh * s->ow];
        if (db) {
            float sum = 0.0f;
            for (int32_t i = 0; i < s->oh * s->ow; i++)
                sum += row[i];
            db[oc] += sum;
        }
        if (!dw)
            continue;
        for (int32_t c = 0; c < num; c++)
            for (int32_t kh = 0; kh < s->kh; kh++)
                for (int32_t kw = 0; kw < s->kw; kw++) {
                    float sum = 0.0f;
                    for (int32_t oh = 0; oh < s->oh; oh++) {
                        int32_t ih = oh * s->sh - s->pt + kh * s->dh;
                        if (ih < 0 || ih >= s->ih)
                            continue;
                        for (int32_t ow = 0; ow < s->ow; ow++) {
                            int32_t iw = ow * s->sw - s->pl + kw * s->dw;
                            if (iw < 0 || iw >= s->iw)
                                continue;
                            sum += row[oh * s->ow + ow] *
                                   x[((first_in(s, oc, depthwise) + c) * s->ih + ih) * s->iw + iw];
                        }
                    }
                    dw[((oc * num + c) * s->kh + kh) * s->kw + kw] += sum;
                }
    }
}

void mh_conv_f32(const mh_geometry *s, const float *x, const float *w, const float *b, float *y)
{
    forward(s, x, w, b, y, 0);
}

void mh_conv_input_f32(const mh_geometry *s, const float *g, const float *w, float *dx, int adds)
{
    input(s, g, w, dx, adds, 0);
}

void mh_conv_params_f32(const mh_geometry *s, const float *g, const float *x, float *dw, float *db)
{
    params(s, g, x, dw, db, 0);
}

void mh_depthwise_f32(const mh_geometry *s, const float *x, const float *w, const float *b, float *y)
{
    forward(s, x, w, b, y, 1);
}

void mh_depthwise_input_f32(const mh_geometry *s, const float *g, const float *w, float *dx, int adds)
{
    input(s, g, w, dx, adds, 1);
}

void mh_depthwise_params_f32(const mh_geometry *s, const float *g, const float *x, float *dw, float *db)
{
    params(s, g, x, dw, db, 1);
}
