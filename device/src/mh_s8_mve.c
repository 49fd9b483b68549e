/* Kernels with MVE (Helium): VMLADAVA takes 16 products at a time into a sum; loops end within a vector by predication, so
   nothing behind a row is read. */
#include "mh_s8_inner.h"

#ifdef MH_S8_MVE

#include <arm_mve.h>

static uint32_t upto(uint32_t n, uint32_t step) { return (n + step - 1) / step * step; }

void mh_dense_sizes_s8(uint32_t num_in, uint32_t num_out, mh_sizes_s8 *sizes) {
    uint32_t outs = upto(num_out, 4);
    sizes->weight_bytes = mh_bytes_s8(outs, upto(num_in, 16), 1);
    sizes->requant_bytes = mh_bytes_s8(outs, sizeof(mh_requant_s8), 1);
    sizes->scratch_bytes = 0;
}

/* Whether the map itself is the row of patches. */
static int pointwise(const mh_geometry *s) {
    return s->kh == 1 && s->kw == 1 && s->sh == 1 && s->sw == 1 && !s->pt && !s->pl && s->oh == s->ih && s->ow == s->iw;
}

void mh_conv_sizes_s8(const mh_geometry *s, mh_sizes_s8 *sizes) {
    uint32_t k = (uint32_t)s->kh * s->kw * s->ic;
    mh_dense_sizes_s8(k, s->oc, sizes);
    sizes->scratch_bytes = pointwise(s) ? 0 : mh_bytes_s8(upto(k, 16), 1, 1);
}

void mh_depthwise_sizes_s8(const mh_geometry *s, mh_sizes_s8 *sizes) {
    uint32_t taps = (uint32_t)s->kh * s->kw, outs = upto(s->oc, 16);
    sizes->weight_bytes = mh_bytes_s8(s->ic == s->oc ? outs : s->oc, taps, 1);
    sizes->requant_bytes = (s->ic == s->oc ? outs : s->oc) * (uint32_t)sizeof(mh_requant_s8);
    sizes->scratch_bytes = s->ic == s->oc ? 4 * taps + outs : 0;
}

/* One patch [k] against all outputs. */
static void outputs(const int8_t *x, const int8_t *w, const int32_t *t, int8_t *y, uint32_t k, uint32_t num,
                    const mh_range_s8 *range) {
    int32x4_t low = vdupq_n_s32(range->low), high = vdupq_n_s32(range->high);
    for (;; num -= 4, y += 4, t += 12) {
        int32_t a = 0, b = 0, c = 0, d = 0;
        const int8_t *from = x;
        __asm__ volatile("wlstp.8 lr, %[k], 2f\n"
                         "1:\n\t"
                         "vldrb.u8 q0, [%[x]], #16\n\tvldrb.u8 q1, [%[w]], #64\n\tvmladava.s8 %[a], q0, q1\n\t"
                         "vldrb.u8 q2, [%[w], #-48]\n\tvmladava.s8 %[b], q0, q2\n\t"
                         "vldrb.u8 q3, [%[w], #-32]\n\tvmladava.s8 %[c], q0, q3\n\t"
                         "vldrb.u8 q1, [%[w], #-16]\n\tvmladava.s8 %[d], q0, q1\n\t"
                         "letp lr, 1b\n"
                         "2:"
                         : [a] "+&Te"(a), [b] "+&Te"(b), [c] "+&Te"(c), [d] "+&Te"(d), [x] "+&r"(from), [w] "+&r"(w)
                         : [k] "r"(k)
                         : "lr", "q0", "q1", "q2", "q3", "memory");
        int32x4_t v = {a, b, c, d};
        v = vshlq_s32(vaddq_s32(v, vld1q_s32(t)), vld1q_s32(t + 8));
        v = vaddq_n_s32(vrmulhq_s32(v, vld1q_s32(t + 4)), range->out_zero);
        v = vminq_s32(vmaxq_s32(v, low), high);
        if (num <= 4) {
            vstrbq_p_s32(y, v, vctp32q(num));
            return;
        }
        vstrbq_s32(y, v);
    }
}

void mh_dense_s8(const int8_t *x, const int8_t *w, const void *table, int8_t *y, uint32_t num_in, uint32_t num_out,
                 const mh_range_s8 *range, void *scratch) {
    (void)scratch;
    outputs(x, w, table, y, num_in, num_out, range);
}

static int8_t *copy(int8_t *to, const int8_t *from, uint32_t n) {
    int8_t *end = to + n;
    __asm__ volatile("wlstp.8 lr, %[n], 2f\n"
                     "1:\n\tvldrb.u8 q0, [%[from]], #16\n\tvstrb.8 q0, [%[to]], #16\n\tletp lr, 1b\n"
                     "2:"
                     : [to] "+&r"(to), [from] "+&r"(from)
                     : [n] "r"(n)
                     : "lr", "q0", "memory");
    return end;
}

static int8_t *fill(int8_t *to, int32_t v, uint32_t n) {
    int8_t *end = to + n;
    __asm__ volatile("vdup.8 q0, %[v]\n\twlstp.8 lr, %[n], 2f\n"
                     "1:\n\tvstrb.8 q0, [%[to]], #16\n\tletp lr, 1b\n"
                     "2:"
                     : [to] "+&r"(to)
                     : [n] "r"(n), [v] "r"(v)
                     : "lr", "q0", "memory");
    return end;
}

static void gather(const mh_geometry *s, const int8_t *x, int32_t top, int32_t left, int32_t zero, int8_t *to) {
    uint32_t ic = s->ic;
    for (uint32_t i = 0; i < s->kh; i++, top += s->dh) {
        const int8_t *line = x + (uint32_t)top * s->iw * ic;
        if (top < 0 || top >= s->ih)
            to = fill(to, zero, ic * s->kw);
        else if (s->dw == 1 && left >= 0 && left + s->kw <= s->iw)
            to = copy(to, line + (uint32_t)left * ic, ic * s->kw);
        else
            for (int32_t j = 0, column = left; j < s->kw; j++, column += s->dw)
                to = column < 0 || column >= s->iw ? fill(to, zero, ic) : copy(to, line + (uint32_t)column * ic, ic);
    }
}

void mh_conv_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                const mh_range_s8 *range, void *scratch) {
    uint32_t oc = s->oc, k = (uint32_t)s->kh * s->kw * s->ic;
    if (pointwise(s)) {
        for (uint32_t n = (uint32_t)s->oh * s->ow; n; n--, x += k, y += oc)
            outputs(x, w, table, y, k, oc, range);
        return;
    }
    int32_t top = -(int32_t)s->pt;
    for (uint32_t r = 0; r < s->oh; r++, top += s->sh) {
        int32_t left = -(int32_t)s->pl;
        for (uint32_t q = 0; q < s->ow; q++, left += s->sw, y += oc) {
            gather(s, x, top, left, range->in_zero, scratch);
            outputs(scratch, w, table, y, k, oc, range);
        }
    }
}

/* 16 channels of one output. Products of int8 are int16, and two of them still are, since weights are above -128; VMULLB
   and VMULLT take the even and the odd channels, which gives the table's order. */
static inline __attribute__((always_inline)) void channels(const int8_t *const *taps, uint32_t num, uint32_t first,
                                                           const int8_t *w, const int32_t *t, int8_t *y,
                                                           const mh_range_s8 *range, mve_pred16_t p, int whole) {
#define LOAD(at) (whole ? vld1q_s8(at) : vldrbq_z_s8(at, p))
    int32x4_t a = vld1q_s32(t), b = vld1q_s32(t + 4), c = vld1q_s32(t + 8), d = vld1q_s32(t + 12);
    for (; num >= 2; num -= 2, taps += 2, w += 32) {
        const int8_t *one = taps[0] + first, *two = taps[1] + first;
        int8x16_t x = LOAD(one), v = vld1q_s8(w), z = LOAD(two), u = vld1q_s8(w + 16);
        int16x8_t even = vaddq_s16(vmullbq_int_s8(x, v), vmullbq_int_s8(z, u));
        int16x8_t odd = vaddq_s16(vmulltq_int_s8(x, v), vmulltq_int_s8(z, u));
        a = vaddq_s32(a, vmovlbq_s16(even)), b = vaddq_s32(b, vmovltq_s16(even));
        c = vaddq_s32(c, vmovlbq_s16(odd)), d = vaddq_s32(d, vmovltq_s16(odd));
    }
    if (num) {
        int8x16_t x = LOAD(taps[0] + first), v = vld1q_s8(w);
        int16x8_t even = vmullbq_int_s8(x, v), odd = vmulltq_int_s8(x, v);
        a = vaddq_s32(a, vmovlbq_s16(even)), b = vaddq_s32(b, vmovltq_s16(even));
        c = vaddq_s32(c, vmovlbq_s16(odd)), d = vaddq_s32(d, vmovltq_s16(odd));
    }
    t += 16;
    a = vrmulhq_s32(vshlq_s32(a, vld1q_s32(t + 16)), vld1q_s32(t));
    b = vrmulhq_s32(vshlq_s32(b, vld1q_s32(t + 20)), vld1q_s32(t + 4));
    c = vrmulhq_s32(vshlq_s32(c, vld1q_s32(t + 24)), vld1q_s32(t + 8));
    d = vrmulhq_s32(vshlq_s32(d, vld1q_s32(t + 28)), vld1q_s32(t + 12));
    /* to int16 and to int8 with saturation, which the clamp behind can't tell from a clip of the whole sum */
    int16x8_t none = vdupq_n_s16(0), even = vqmovntq_s32(vqmovnbq_s32(none, a), b), odd = vqmovntq_s32(vqmovnbq_s32(none, c), d);
    even = vqaddq_n_s16(even, (int16_t)range->out_zero), odd = vqaddq_n_s16(odd, (int16_t)range->out_zero);
    int8x16_t v = vqmovntq_s16(vqmovnbq_s16(vdupq_n_s8(0), even), odd);
    v = vminq_s8(vmaxq_s8(v, vdupq_n_s8((int8_t)range->low)), vdupq_n_s8((int8_t)range->high));
    if (whole)
        vst1q_s8(y, v);
    else
        vstrbq_p_s8(y, v, p);
#undef LOAD
}

void mh_depthwise_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                     const mh_range_s8 *range, void *scratch) {
    if (s->ic != s->oc) {
        mh_depthwise_plain_s8(s, x, w, table, y, range);
        return;
    }
    uint32_t ic = s->ic, num = (uint32_t)s->kh * s->kw, whole = ic & ~15u;
    const int8_t **taps = scratch;
    int8_t *padding = (int8_t *)(taps + num);
    mve_pred16_t rest = vctp8q(ic - whole);
    fill(padding, range->in_zero, ic);
    int32_t top = -(int32_t)s->pt;
    for (uint32_t r = 0; r < s->oh; r++, top += s->sh) {
        int32_t left = -(int32_t)s->pl;
        for (uint32_t q = 0; q < s->ow; q++, left += s->sw, y += ic) {
            const int8_t **tap = taps;
            int32_t row = top;
            for (uint32_t i = 0; i < s->kh; i++, row += s->dh) {
                int32_t column = left;
                const int8_t *at = x + ((uint32_t)row * s->iw + (uint32_t)column) * ic;
                uint32_t step = s->dw * ic;
                for (uint32_t j = 0; j < s->kw; j++, column += s->dw, at += step)
                    *tap++ = row < 0 || row >= s->ih || column < 0 || column >= s->iw ? padding : at;
            }
            const int8_t *v = w;
            const int32_t *t = table;
            for (uint32_t c = 0; c < whole; c += 16, v += 16 * num, t += 48)
                channels(taps, num, c, v, t, y + c, range, rest, 1);
            if (whole < ic)
                channels(taps, num, whole, v, t, y + whole, range, rest, 0);
        }
    }
}

#endif
