#include "mh_f32.h"
#include "mh_lanes_f32.h"

/* Both ways through a convolution are one sum,
       out[m][row][column] = sum over channels, row taps, column taps of w * in[channel][row source][column source],
   and so is a depthwise one, with 1 for m. Each axis of it is walked as `walk` says. */

/* The taps that reach one place of an axis: tap, tap + tap_step, ...; they read `at`, at + at_step, ... */
typedef struct {
    int32_t num, tap, tap_step, at, at_step;
} walk;

/* One axis of the way: forward, place o reads o * stride - pad + tap * dilation; backward, the reverse. */
typedef struct {
    int32_t places, size; /* of out, of in */
    int32_t kernel, stride, pad, dilation;
    int backward;
} axis;

typedef struct {
    axis rows, columns;
    int32_t channels;                /* summed over */
    int32_t out_step, channel_step;  /* of w */
    int adds;
} correlation;

static walk walk_of(const axis *a, int32_t place)
{
    walk k = {a->kernel, 0, 1, place * a->stride - a->pad, a->dilation};
    if (!a->backward)
        return k;
    /* place = at * stride - pad + tap * dilation: only every so many taps do. */
    int32_t sum = place + a->pad;
    while (k.tap < a->kernel && (sum - k.tap * a->dilation) % a->stride)
        k.tap++;
    while (k.tap_step * a->dilation % a->stride)
        k.tap_step++;
    k.num = (a->kernel - k.tap + k.tap_step - 1) / k.tap_step;
    k.at = k.num ? (sum - k.tap * a->dilation) / a->stride : 0;
    k.at_step = -(k.tap_step * a->dilation / a->stride);
    return k;
}

/* Drops the taps that read outside; those inside are next to one another. */
static walk inside(walk k, int32_t size)
{
    while (k.num && (k.at < 0 || k.at >= size)) {
        k.num--;
        k.tap += k.tap_step;
        k.at += k.at_step;
    }
    while (k.num) {
        int32_t last = k.at + (k.num - 1) * k.at_step;
        if (last >= 0 && last < size)
            break;
        k.num--;
    }
    return k;
}

/* `num` outputs m at `wide` places (1, or MH_LANES of them that are `places_step` apart and read `move` apart). */
MH_INLINE void block(const correlation *c, const float *in, const float *w, const float *b, float *out, walk rows,
                     walk columns, int32_t num, int wide, int32_t move, int32_t places_step)
{
    int32_t plane = c->rows.size * c->columns.size, out_plane = c->rows.places * c->columns.places;
    int32_t step = c->out_step;
    mh_lanes many[4];
    float one[4];
    MH_UNROLL
    for (int32_t m = 0; m < num; m++) {
        one[m] = b ? b[m] : 0.0f;
        many[m] = mh_lanes_set(one[m]);
    }
    const float *corner = in + rows.at * c->columns.size + columns.at;
    const float *w_corner = w + rows.tap * c->columns.kernel + columns.tap;
    int32_t row_step = rows.at_step * c->columns.size, w_row_step = rows.tap_step * c->columns.kernel;
    for (int32_t i = 0; i < c->channels; i++, corner += plane, w_corner += c->channel_step) {
        const float *row = corner, *w_row = w_corner;
        for (int32_t t = 0; t < rows.num; t++, row += row_step, w_row += w_row_step) {
            const float *x = row, *v = w_row;
            for (int32_t u = columns.num; u > 0; u--, x += columns.at_step, v += columns.tap_step) {
                if (wide) {
                    mh_lanes seen = mh_lanes_load(x, move);
                    MH_UNROLL
                    for (int32_t m = 0; m < num; m++)
                        many[m] = mh_lanes_add(many[m], mh_lanes_mul(seen, v[m * step]));
                } else {
                    float seen = *x;
                    MH_UNROLL
                    for (int32_t m = 0; m < num; m++)
                        one[m] += v[m * step] * seen;
                }
            }
        }
    }
    MH_UNROLL
    for (int32_t m = 0; m < num; m++, out += out_plane) {
        if (wide) {
            mh_lanes sum = many[m];
            if (c->adds)
                sum = mh_lanes_add(mh_lanes_load(out, places_step), sum);
            mh_lanes_store(out, places_step, sum);
        } else {
            *out = c->adds ? *out + one[m] : one[m];
        }
    }
}

/* All places of `num` outputs m. */
MH_INLINE void outputs(const correlation *c, const float *in, const float *w, const float *b, float *out, int32_t num)
{
    const axis *a = &c->columns;
    int32_t phases = a->backward ? a->stride : 1, move = a->backward ? 1 : a->stride;
    for (int32_t y = 0; y < c->rows.places; y++, out += a->places) {
        walk rows = inside(walk_of(&c->rows, y), c->rows.size);
        for (int32_t phase = 0; phase < phases; phase++) {
            walk columns = walk_of(a, phase);
            /* The sources of a place lie in [at + low, at + high]. */
            int32_t far = (columns.num - 1) * columns.at_step, low = far < 0 ? far : 0, high = far < 0 ? 0 : far;
            int32_t last = (MH_LANES - 1) * move + high;
            for (int32_t place = phase; place < a->places;) {
                if (place + (MH_LANES - 1) * phases < a->places && columns.at + low >= 0 &&
                    columns.at + last < a->size) {
                    if (move == 1 && phases == 1)
                        block(c, in, w, b, out + place, rows, columns, num, 1, 1, 1);
                    else
                        block(c, in, w, b, out + place, rows, columns, num, 1, move, phases);
                    place += MH_LANES * phases;
                    columns.at += MH_LANES * move;
                } else {
                    block(c, in, w, b, out + place, rows, inside(columns, a->size), num, 0, 0, 0);
                    place += phases;
                    columns.at += move;
                }
            }
        }
    }
}

static void correlate(const correlation *c, const float *in, const float *w, const float *b, float *out, int32_t num)
{
    int32_t out_plane = c->rows.places * c->columns.places;
    for (; num >= 4; num -= 4, w += 4 * c->out_step, out += 4 * out_plane, b = b ? b + 4 : b)
        outputs(c, in, w, b, out, 4);
    for (; num > 0; num--, w += c->out_step, out += out_plane, b = b ? b + 1 : b)
        outputs(c, in, w, b, out, 1);
}

static correlation correlation_of(const mh_geometry *s, int backward, int adds)
{
    correlation c = {{s->oh, s->ih, s->kh, s->sh, s->pt, s->dh, backward},
                     {s->ow, s->iw, s->kw, s->sw, s->pl, s->dw, backward},
                     1, 0, 0, adds};
    if (backward) {
        c.rows.places = s->ih;
        c.rows.size = s->oh;
        c.columns.places = s->iw;
        c.columns.size = s->ow;
    }
    if (s->kh * s->kw == 1 && s->sh * s->sw == 1 && s->pt + s->pl == 0 && s->ih == s->oh && s->iw == s->ow) {
        c.columns.places = c.columns.size = s->ih * s->iw; /* one long row */
        c.rows.places = c.rows.size = 1;
    }
    return c;
}

void mh_conv_f32(const mh_geometry *s, const float *x, const float *w, const float *b, float *y)
{
    correlation c = correlation_of(s, 0, 0);
    c.channels = s->ic;
    c.channel_step = s->kh * s->kw;
    c.out_step = s->ic * c.channel_step;
    correlate(&c, x, w, b, y, s->oc);
}

void mh_conv_input_f32(const mh_geometry *s, const float *g, const float *w, float *dx, int adds)
{
    correlation c = correlation_of(s, 1, adds);
    c.channels = s->oc;
    c.out_step = s->kh * s->kw;
    c.channel_step = s->ic * c.out_step;
    correlate(&c, g, w, 0, dx, s->ic);
}

void mh_depthwise_f32(const mh_geometry *s, const float *x, const float *w, const float *b, float *y)
{
    correlation c = correlation_of(s, 0, 0);
    int32_t times = s->oc / s->ic;
    c.channels = 1;
    c.out_step = s->kh * s->kw;
    for (int32_t ic = 0; ic < s->ic; ic++, x += s->ih * s->iw, w += times * c.out_step, y += times * s->oh * s->ow)
        correlate(&c, x, w, b ? b + ic * times : 0, y, times);
}

void mh_depthwise_input_f32(const mh_geometry *s, const float *g, const float *w, float *dx, int adds)
{
    correlation c = correlation_of(s, 1, adds);
    c.channels = s->oc / s->ic;
    c.channel_step = s->kh * s->kw;
    for (int32_t ic = 0; ic < s->ic; ic++, dx += s->ih * s->iw) {
        correlate(&c, g, w, 0, dx, 1);
        g += c.channels * s->oh * s->ow;
        w += c.channels * c.channel_step;
    }
}

/* The outputs [first, last) of an axis that a tap reaches inside the map. */
static void reach(int32_t out, int32_t size, int32_t stride, int32_t offset, int32_t *first, int32_t *last)
{
    *first = offset < 0 ? (-offset + stride - 1) / stride : 0;
    *last = size > offset ? (size - 1 - offset) / stride + 1 : 0;
    if (*last > out)
        *last = out;
}

/* dw += sums of g * x for one tap (kh, kw) of `num` outputs, g_plane apart, with `wide` inputs, x_plane apart. */
MH_INLINE void tap(const mh_geometry *s, const float *g, const float *x, float *dw, int32_t kh, int32_t kw, int32_t num,
                   int32_t wide, int32_t out_step)
{
    int32_t g_plane = s->oh * s->ow, x_plane = s->ih * s->iw, in_step = s->kh * s->kw;
    int32_t top = kh * s->dh - s->pt, left = kw * s->dw - s->pl, y0, y1, x0, x1;
    float sum[4][4];
    reach(s->oh, s->ih, s->sh, top, &y0, &y1);
    reach(s->ow, s->iw, s->sw, left, &x0, &x1);
    MH_UNROLL
    for (int32_t m = 0; m < num; m++)
        MH_UNROLL
        for (int32_t n = 0; n < wide; n++)
            sum[m][n] = 0.0f;
    for (int32_t y = y0; y < y1; y++) {
        const float *from = g + y * s->ow + x0, *at = x + (y * s->sh + top) * s->iw + x0 * s->sw + left;
        for (int32_t i = x0; i < x1; i++, from++, at += s->sw)
            MH_UNROLL
            for (int32_t n = 0; n < wide; n++) {
                float seen = at[n * x_plane];
                MH_UNROLL
                for (int32_t m = 0; m < num; m++)
                    sum[m][n] += from[m * g_plane] * seen;
            }
    }
    MH_UNROLL
    for (int32_t m = 0; m < num; m++)
        MH_UNROLL
        for (int32_t n = 0; n < wide; n++)
            dw[m * out_step + n * in_step] += sum[m][n];
}

/* All taps of `num` outputs that read the same `channels` inputs. */
MH_INLINE void taps(const mh_geometry *s, const float *g, const float *x, float *dw, int32_t channels, int32_t num)
{
    int32_t plane = s->ih * s->iw, kernel = s->kh * s->kw, i = 0;
    for (; i + 4 <= channels; i += 4)
        for (int32_t k = 0; k < kernel; k++)
            tap(s, g, x + i * plane, dw + i * kernel + k, k / s->kw, k % s->kw, num, 4, channels * kernel);
    for (; i < channels; i++)
        for (int32_t k = 0; k < kernel; k++)
            tap(s, g, x + i * plane, dw + i * kernel + k, k / s->kw, k % s->kw, num, 1, channels * kernel);
}

static void params(const mh_geometry *s, const float *g, const float *x, float *dw, int32_t channels, int32_t num)
{
    int32_t plane = s->oh * s->ow, step = channels * s->kh * s->kw;
    for (; num >= 4; num -= 4, g += 4 * plane, dw += 4 * step)
        taps(s, g, x, dw, channels, 4);
    for (; num > 0; num--, g += plane, dw += step)
        taps(s, g, x, dw, channels, 1);
}

static void bias(const mh_geometry *s, const float *g, float *db)
{
    int32_t plane = s->oh * s->ow;
    for (int32_t oc = 0; oc < s->oc; oc++, g += plane) {
        float sum = 0.0f;
        for (int32_t i = 0; i < plane; i++)
            sum += g[i];
        db[oc] += sum;
    }
}

void mh_conv_params_f32(const mh_geometry *s, const float *g, const float *x, float *dw, float *db)
{
    if (db)
        bias(s, g, db);
    if (dw)
        params(s, g, x, dw, s->ic, s->oc);
}

void mh_depthwise_params_f32(const mh_geometry *s, const float *g, const float *x, float *dw, float *db)
{
    int32_t times = s->oc / s->ic;
    if (db)
        bias(s, g, db);
    for (int32_t ic = 0; dw && ic < s->ic; ic++) {
        params(s, g, x, dw, 1, times);
        g += times * s->oh * s->ow;
        x += s->ih * s->iw;
        dw += times * s->kh * s->kw;
    }
}
