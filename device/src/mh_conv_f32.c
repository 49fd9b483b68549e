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
    int32_t channels;               /* summed over */
    int32_t out_step, channel_step; /* of w */
    int32_t in_step;                /* of in, from one m to the next: 0 where all read the same channels */
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

/* Where one block reads and writes. */
typedef struct {
    const float *in, *w, *b;
    float *out;
    walk rows, columns;
} job;

/* `num` outputs m, each with its own input channels if `apart`, at one place; or, if `wide`, at MH_LANES places that are
   `places_step` apart and read `move` apart. */
MH_INLINE void block(const correlation *c, const job *j, int32_t num, int apart, int wide, int32_t move, int32_t places_step)
{
    int32_t plane = c->rows.size * c->columns.size, out_plane = c->rows.places * c->columns.places;
    int32_t in_step = apart ? c->in_step : 0, out_step = c->out_step, channels = c->channels;
    int32_t num_rows = j->rows.num, num_columns = j->columns.num;
    int32_t row_step = j->rows.at_step * c->columns.size, w_row_step = j->rows.tap_step * c->columns.kernel;
    int32_t column_step = j->columns.at_step, w_column_step = j->columns.tap_step;
    const float *corner = j->in + j->rows.at * c->columns.size + j->columns.at;
    const float *w_corner = j->w + j->rows.tap * c->columns.kernel + j->columns.tap;
    int32_t w_plane = c->channel_step;
    float *out = j->out;
    mh_lanes many[4];
    float one[4];
    if (num_rows == 1 && num_columns == 1) { /* the channels are the inner loop then */
        num_columns = channels;
        column_step = plane;
        w_column_step = w_plane;
        channels = 1;
    }
    MH_UNROLL
    for (int32_t m = 0; m < num; m++) {
        one[m] = j->b ? j->b[m] : 0.0f;
        many[m] = mh_lanes_set(one[m]);
    }
    for (; channels > 0; channels--, corner += plane, w_corner += w_plane) {
        const float *row = corner, *w_row = w_corner;
        for (int32_t t = num_rows; t > 0; t--, row += row_step, w_row += w_row_step) {
            const float *x = row, *v = w_row;
            for (int32_t u = num_columns; u > 0; u--, x += column_step, v += w_column_step) {
                if (wide) {
                    mh_lanes seen = mh_lanes_load(x, move);
                    MH_UNROLL
                    for (int32_t m = 0; m < num; m++) {
                        if (apart && m)
                            seen = mh_lanes_load(x + m * in_step, move);
                        many[m] = mh_lanes_add(many[m], mh_lanes_mul(seen, v[m * out_step]));
                    }
                } else {
                    float seen = *x;
                    MH_UNROLL
                    for (int32_t m = 0; m < num; m++) {
                        if (apart && m)
                            seen = x[m * in_step];
                        one[m] += v[m * out_step] * seen;
                    }
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

typedef void kernel(const correlation *c, const job *j, int32_t move, int32_t places_step);

/* One of each, out of line, so that flash holds it once. */
#define KERNEL(name, num, apart, wide, move, places_step)                                             \
    static __attribute__((noinline)) void name(const correlation *c, const job *j, int32_t m, int32_t p) \
    {                                                                                                 \
        (void)m;                                                                                      \
        (void)p;                                                                                      \
        block(c, j, num, apart, wide, move, places_step);                                             \
    }
KERNEL(four_wide, 4, 0, 1, 1, 1)
KERNEL(four_spread, 4, 0, 1, m, p)
KERNEL(four_single, 4, 0, 0, 0, 0)
KERNEL(apart_wide, 4, 1, 1, 1, 1)
KERNEL(apart_single, 4, 1, 0, 0, 0)
KERNEL(one_spread, 1, 0, 1, m, p)
KERNEL(one_single, 1, 0, 0, 0, 0)

/* All places of some outputs m. `wide` is for neighbours, `spread` for others, or 0 to take places one by one. */
static void outputs(const correlation *c, job *j, float *out, kernel *wide, kernel *spread, kernel *single)
{
    const axis *a = &c->columns;
    int32_t phases = a->backward ? a->stride : 1, move = a->backward ? 1 : a->stride;
    kernel *many = move == 1 && phases == 1 ? wide : spread;
    for (int32_t y = 0; y < c->rows.places; y++, out += a->places) {
        j->rows = inside(walk_of(&c->rows, y), c->rows.size);
        for (int32_t phase = 0; phase < phases; phase++) {
            walk columns = walk_of(a, phase);
            /* The sources of a place lie in [at + low, at + high]. */
            int32_t far = (columns.num - 1) * columns.at_step, low = far < 0 ? far : 0, high = far < 0 ? 0 : far;
            int32_t last = (MH_LANES - 1) * move + high;
            for (int32_t place = phase; place < a->places;) {
                j->out = out + place;
                j->columns = columns;
                if (many && place + (MH_LANES - 1) * phases < a->places && columns.at + low >= 0 &&
                    columns.at + last < a->size) {
                    many(c, j, move, phases);
                    place += MH_LANES * phases;
                    columns.at += MH_LANES * move;
                } else {
                    if (columns.at + low < 0 || columns.at + high >= a->size)
                        j->columns = inside(columns, a->size);
                    single(c, j, 0, 0);
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
    while (num > 0) {
        job j = {in, w, b, out, {0, 0, 0, 0, 0}, {0, 0, 0, 0, 0}};
        int32_t some = num >= 4 ? 4 : 1;
        if (some == 1)
            outputs(c, &j, out, one_spread, one_spread, one_single);
        else if (c->in_step)
            outputs(c, &j, out, apart_wide, 0, apart_single);
        else
            outputs(c, &j, out, four_wide, four_spread, four_single);
        num -= some;
        in += some * c->in_step;
        w += some * c->out_step;
        b = b ? b + some : b;
        out += some * out_plane;
    }
}

static correlation correlation_of(const mh_geometry *s, int backward, int adds)
{
    correlation c = {{s->oh, s->ih, s->kh, s->sh, s->pt, s->dh, backward},
                     {s->ow, s->iw, s->kw, s->sw, s->pl, s->dw, backward},
                     1, 0, 0, 0, adds};
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
    int32_t times = s->oc / s->ic, plane = s->ih * s->iw;
    c.out_step = s->kh * s->kw;
    if (times == 1) {
        c.in_step = plane;
        correlate(&c, x, w, b, y, s->oc);
        return;
    }
    for (int32_t ic = 0; ic < s->ic; ic++, x += plane, w += times * c.out_step, y += times * s->oh * s->ow)
        correlate(&c, x, w, b ? b + ic * times : 0, y, times);
}

void mh_depthwise_input_f32(const mh_geometry *s, const float *g, const float *w, float *dx, int adds)
{
    correlation c = correlation_of(s, 1, adds);
    c.channels = s->oc / s->ic;
    c.channel_step = s->kh * s->kw;
    c.out_step = c.channels * c.channel_step;
    c.in_step = c.channels * s->oh * s->ow;
    correlate(&c, g, w, 0, dx, s->ic);
}

/* The outputs [first, last) of an axis that a tap reaches inside the map. */
static void reach(int32_t out, int32_t size, int32_t stride, int32_t offset, int32_t *first, int32_t *last)
{
    *first = offset < 0 ? (-offset + stride - 1) / stride : 0;
    *last = size > offset ? (size - 1 - offset) / stride + 1 : 0;
    if (*last > out)
        *last = out;
}

/* dw += sums of g * x for one tap of `num` outputs, g_plane apart, with each of `wide` inputs, x_plane apart; or, if
   `apart`, of each output with an input of its own. */
typedef struct {
    int32_t kh, kw, out_step;
} place;

MH_INLINE void tap(const mh_geometry *s, const float *g, const float *x, float *dw, const place *at, int32_t num, int32_t wide,
                   int apart)
{
    int32_t g_plane = s->oh * s->ow, x_plane = s->ih * s->iw, in_step = s->kh * s->kw, step = s->sw;
    int32_t top = at->kh * s->dh - s->pt, left = at->kw * s->dw - s->pl, y0, y1, x0, x1;
    float sum[4][4];
    reach(s->oh, s->ih, s->sh, top, &y0, &y1);
    reach(s->ow, s->iw, s->sw, left, &x0, &x1);
    int32_t rows = y1 - y0, columns = x1 - x0;
    const float *g_row = g + y0 * s->ow + x0, *x_row = x + (y0 * s->sh + top) * s->iw + x0 * step + left;
    if (columns == s->ow && s->ow == s->iw && s->sh == 1 && step == 1 && rows > 0) { /* one long row */
        columns *= rows;
        rows = 1;
    }
    MH_UNROLL
    for (int32_t m = 0; m < num; m++)
        MH_UNROLL
        for (int32_t n = 0; n < wide; n++)
            sum[m][n] = 0.0f;
    for (; rows > 0; rows--, g_row += s->ow, x_row += s->sh * s->iw) {
        const float *from = g_row, *seen = x_row;
        for (int32_t i = columns; i > 0; i--, from++, seen += step)
            MH_UNROLL
            for (int32_t n = 0; n < wide; n++) {
                float v = seen[n * x_plane];
                MH_UNROLL
                for (int32_t m = 0; m < num; m++) {
                    if (apart && m)
                        v = seen[m * x_plane];
                    sum[m][n] += from[m * g_plane] * v;
                }
            }
    }
    MH_UNROLL
    for (int32_t m = 0; m < num; m++)
        MH_UNROLL
        for (int32_t n = 0; n < wide; n++)
            dw[m * at->out_step + n * in_step] += sum[m][n];
}

typedef void tap_kernel(const mh_geometry *s, const float *g, const float *x, float *dw, const place *at);

#define TAP(name, num, wide, apart)                                                                                  \
    static __attribute__((noinline)) void name(const mh_geometry *s, const float *g, const float *x, float *dw,      \
                                               const place *at)                                                      \
    {                                                                                                                \
        tap(s, g, x, dw, at, num, wide, apart);                                                                      \
    }
TAP(tap_four_by_four, 4, 4, 0)
TAP(tap_four_by_one, 4, 1, 0)
TAP(tap_one_by_one, 1, 1, 0)
TAP(tap_four_apart, 4, 1, 1)

static void each_tap(const mh_geometry *s, const float *g, const float *x, float *dw, int32_t out_step, tap_kernel *one)
{
    place at = {0, 0, out_step};
    for (at.kh = 0; at.kh < s->kh; at.kh++)
        for (at.kw = 0; at.kw < s->kw; at.kw++)
            one(s, g, x, dw++, &at);
}

/* `num` outputs that read the same `channels` inputs. */
static void params(const mh_geometry *s, const float *g, const float *x, float *dw, int32_t channels, int32_t num)
{
    int32_t g_plane = s->oh * s->ow, x_plane = s->ih * s->iw, kernel = s->kh * s->kw, step = channels * kernel;
    while (num > 0) {
        int32_t some = num >= 4 ? 4 : 1, i = 0;
        for (; some == 4 && i + 4 <= channels; i += 4)
            each_tap(s, g, x + i * x_plane, dw + i * kernel, step, tap_four_by_four);
        for (; i < channels; i++)
            each_tap(s, g, x + i * x_plane, dw + i * kernel, step, some == 4 ? tap_four_by_one : tap_one_by_one);
        num -= some;
        g += some * g_plane;
        dw += some * step;
    }
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
    int32_t times = s->oc / s->ic, kernel = s->kh * s->kw, ic = 0;
    if (db)
        bias(s, g, db);
    if (!dw)
        return;
    for (; times == 1 && ic + 4 <= s->ic; ic += 4)
        each_tap(s, g + ic * s->oh * s->ow, x + ic * s->ih * s->iw, dw + ic * kernel, kernel, tap_four_apart);
    for (; ic < s->ic; ic++)
        params(s, g + ic * times * s->oh * s->ow, x + ic * s->ih * s->iw, dw + ic * times * kernel, 1, times);
}
