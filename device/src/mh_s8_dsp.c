/* Kernels with the DSP instructions. SXTB16 widens four int8 weights w0 w1 w2 w3 to the pairs (w0, w2) and (w1, w3) of
   int16; the inputs are widened the same way, so that pairs meet and SMLAD takes two products at a time. */
#include "mh_s8_inner.h"

#ifdef MH_S8_DSP

#define BAND_BYTES 1024u /* pack.py has the same */

static inline uint32_t even(uint32_t v) {
    uint32_t r;
    __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(v));
    return r;
}

static inline uint32_t odd(uint32_t v) {
    uint32_t r;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(v));
    return r;
}

static inline uint32_t smlad(uint32_t a, uint32_t b, uint32_t sum) {
    uint32_t r;
    __asm__("smlad %0, %1, %2, %3" : "=r"(r) : "r"(a), "r"(b), "r"(sum));
    return r;
}

static inline int8_t requantise(uint32_t sum, int32_t multiplier, int32_t shift, int32_t zero) {
    uint32_t wide = sum << ((uint32_t)shift & 31u);
    int32_t r;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(r) : "r"(wide), "r"(multiplier), "r"(zero));
    __asm__("ssat %0, #8, %1" : "=r"(r) : "r"(r));
    return (int8_t)r;
}

static inline uint32_t word(const int8_t *at) {
    uint32_t v;
    __asm__("ldr %0, %1" : "=r"(v) : "m"(*(const uint32_t(*)[1])(const void *)at));
    return v;
}

/* The kernels saturate to int8; a clamp that is narrower comes behind, four numbers at a time. */
static void clamp(int8_t *y, uint32_t n, const mh_range_s8 *range) {
    if (range->low <= -128 && range->high >= 127)
        return;
    uint32_t low = ((uint32_t)range->low & 0xffu) * 0x01010101u, high = ((uint32_t)range->high & 0xffu) * 0x01010101u;
    for (; n && ((uintptr_t)y & 3u); n--, y++)
        *y = (int8_t)(*y < range->low ? range->low : *y > range->high ? range->high : *y);
    for (; n >= 4; n -= 4, y += 4) {
        uint32_t v = word(y), unused;
        __asm__("ssub8 %1, %0, %2\n\tsel %0, %0, %2\n\tssub8 %1, %3, %0\n\tsel %0, %0, %3"
                : "+&r"(v), "=&r"(unused)
                : "r"(low), "r"(high)
                : "cc");
        __asm__("str %1, %0" : "=m"(*(uint32_t(*)[1])(void *)y) : "r"(v));
    }
    for (; n; n--, y++)
        *y = (int8_t)(*y < range->low ? range->low : *y > range->high ? range->high : *y);
}

static uint32_t upto(uint32_t n, uint32_t step) { return (n + step - 1) / step * step; }

void mh_dense_sizes_s8(uint32_t num_in, uint32_t num_out, mh_sizes_s8 *sizes) {
    uint32_t outs = upto(num_out, 4);
    sizes->weight_bytes = mh_bytes_s8(outs, upto(num_in, 4), 1);
    sizes->requant_bytes = mh_bytes_s8(outs, sizeof(mh_requant_s8), 1);
    sizes->scratch_bytes = 0;
}

void mh_conv_sizes_s8(const mh_geometry *s, mh_sizes_s8 *sizes) {
    uint32_t outs = upto(s->oc, 2), k = upto((uint32_t)s->kh * s->kw * s->ic, 4);
    sizes->weight_bytes = mh_bytes_s8(outs, k, 1);
    sizes->requant_bytes = outs * (uint32_t)sizeof(mh_requant_s8);
    sizes->scratch_bytes = mh_bytes_s8(k, 1, s->ic % 4 ? 5 : 4);
}

/* The bytes of a line of a depthwise layer's band, and the rows of output that a band gives. */
static uint32_t band(const mh_geometry *s, uint32_t *rows) {
    uint32_t line = 2 * upto(((uint32_t)s->ow - 1) * s->sw + ((uint32_t)s->kw - 1) * s->dw + 2, 4);
    uint32_t span = ((uint32_t)s->kh - 1) * s->dh + 1, fit = BAND_BYTES / line;
    *rows = fit > span ? (fit - span) / s->sh + 1 : 1;
    *rows = *rows < s->oh ? *rows : s->oh;
    return line;
}

void mh_depthwise_sizes_s8(const mh_geometry *s, mh_sizes_s8 *sizes) {
    uint32_t rows, line = band(s, &rows);
    sizes->weight_bytes = mh_bytes_s8(s->oc, (uint32_t)s->kh * s->kw, 1);
    sizes->requant_bytes = s->oc * (uint32_t)sizeof(mh_requant_s8);
    sizes->scratch_bytes = mh_bytes_s8((rows - 1) * s->sh + ((uint32_t)s->kh - 1) * s->dh + 1, line, 1);
}

#define DENSE_PAIR(a, b)                                                                                               \
    "ldrd %[w0], %[w1], [%[w]], #8\n\t"                                                                                \
    "sxtb16 %[t], %[w0]\n\tsmlad %[" a "], %[t], %[x0], %[" a "]\n\t"                                                  \
    "sxtb16 %[t], %[w0], ror #8\n\tsmlad %[" a "], %[t], %[x1], %[" a "]\n\t"                                          \
    "sxtb16 %[t], %[w1]\n\tsmlad %[" b "], %[t], %[x0], %[" b "]\n\t"                                                  \
    "sxtb16 %[t], %[w1], ror #8\n\tsmlad %[" b "], %[t], %[x1], %[" b "]\n\t"

void mh_dense_s8(const int8_t *x, const int8_t *w, const void *table, int8_t *y, uint32_t num_in, uint32_t num_out,
                 const mh_range_s8 *range, void *scratch) {
    const mh_requant_s8 *t = table;
    int8_t *end = y + num_out;
    (void)scratch;
    while (y < end) {
        uint32_t a0 = (uint32_t)t[0].bias, a1 = (uint32_t)t[1].bias, a2 = (uint32_t)t[2].bias, a3 = (uint32_t)t[3].bias;
        uint32_t n = num_in / 8, x0, x1, x2, w0, w1, v;
        const int8_t *from = x;
        if (n)
            __asm__ volatile("1:\n\t"
                             "ldrd %[x1], %[x2], [%[x]], #8\n\t"
                             "sxtb16 %[x0], %[x1]\n\tsxtb16 %[x1], %[x1], ror #8\n\t" DENSE_PAIR("a0", "a1")
                                 DENSE_PAIR("a2", "a3") "sxtb16 %[x0], %[x2]\n\tsxtb16 %[x1], %[x2], ror #8\n\t"
                                     DENSE_PAIR("a0", "a1") DENSE_PAIR("a2", "a3") "subs %[n], #1\n\tbne 1b"
                             : [a0] "+&r"(a0), [a1] "+&r"(a1), [a2] "+&r"(a2), [a3] "+&r"(a3), [x] "+&r"(from),
                               [w] "+&r"(w), [n] "+&r"(n), [x0] "=&r"(x0), [x1] "=&r"(x1), [x2] "=&r"(x2),
                               [w0] "=&r"(w0), [w1] "=&r"(w1), [t] "=&r"(v)
                             :
                             : "cc", "memory");
        for (uint32_t rest = num_in % 8; rest;) {
            uint32_t four = 0, num = rest < 4 ? rest : 4;
            for (uint32_t i = 0; i < num; i++)
                four |= (uint32_t)(uint8_t)*from++ << (8 * i);
            rest -= num;
            x0 = even(four), x1 = odd(four);
            a0 = smlad(odd(word(w)), x1, smlad(even(word(w)), x0, a0));
            a1 = smlad(odd(word(w + 4)), x1, smlad(even(word(w + 4)), x0, a1));
            a2 = smlad(odd(word(w + 8)), x1, smlad(even(word(w + 8)), x0, a2));
            a3 = smlad(odd(word(w + 12)), x1, smlad(even(word(w + 12)), x0, a3));
            w += 16;
        }
        *y++ = requantise(a0, t[0].multiplier, t[0].shift, range->out_zero);
        if (y < end)
            *y++ = requantise(a1, t[1].multiplier, t[1].shift, range->out_zero);
        if (y < end)
            *y++ = requantise(a2, t[2].multiplier, t[2].shift, range->out_zero);
        if (y < end)
            *y++ = requantise(a3, t[3].multiplier, t[3].shift, range->out_zero);
        t += 4;
    }
    clamp(end - num_out, num_out, range);
}

/* Four numbers of a pixel become two words, two words apart: the other pixel's lie between. */
static uint32_t *widen(uint32_t *to, const int8_t *from, uint32_t fours) {
    for (; fours >= 4; fours -= 4, from += 16, to += 16) {
        uint32_t a = word(from), b = word(from + 4), c = word(from + 8), d = word(from + 12);
        to[0] = even(a), to[2] = odd(a), to[4] = even(b), to[6] = odd(b);
        to[8] = even(c), to[10] = odd(c), to[12] = even(d), to[14] = odd(d);
    }
    for (; fours; fours--, from += 4, to += 4) {
        uint32_t a = word(from);
        to[0] = even(a), to[2] = odd(a);
    }
    return to;
}

static uint32_t *fill(uint32_t *to, uint32_t pair, uint32_t fours) {
    for (; fours; fours--, to += 4)
        to[0] = to[2] = pair;
    return to;
}

/* The patch under one output in words for SMLAD, `num` = ic / 4 to a tap. */
static void gather(const mh_geometry *s, const int8_t *x, int32_t top, int32_t left, uint32_t pair, uint32_t *to) {
    uint32_t num = s->ic / 4u, step = s->dw;
    for (uint32_t i = 0; i < s->kh; i++, top += s->dh) {
        const int8_t *line = x + (uint32_t)top * s->iw * s->ic;
        if (top < 0 || top >= s->ih)
            to = fill(to, pair, num * s->kw);
        else if (step == 1 && left >= 0 && left + s->kw <= s->iw)
            to = widen(to, line + (uint32_t)left * s->ic, num * s->kw);
        else
            for (int32_t j = 0, column = left; j < s->kw; j++, column += (int32_t)step)
                to = column < 0 || column >= s->iw ? fill(to, pair, num)
                                                   : widen(to, line + (uint32_t)column * s->ic, num);
    }
}

/* The same for a number of channels that fours don't divide: byte by byte, then widened. */
static void gather_bytes(const mh_geometry *s, const int8_t *x, int32_t top, int32_t left, int32_t zero, uint32_t *to,
                         int8_t *bytes, uint32_t fours) {
    int8_t *at = bytes;
    for (uint32_t i = 0; i < s->kh; i++, top += s->dh)
        for (int32_t j = 0, column = left; j < s->kw; j++, column += s->dw) {
            if (top < 0 || top >= s->ih || column < 0 || column >= s->iw) {
                for (uint32_t c = 0; c < s->ic; c++)
                    *at++ = (int8_t)zero;
            } else {
                const int8_t *from = x + ((uint32_t)top * s->iw + (uint32_t)column) * s->ic;
                for (uint32_t c = 0; c < s->ic; c++)
                    *at++ = *from++;
            }
        }
    while (at < bytes + 4 * fours)
        *at++ = 0;
    widen(to, bytes, fours);
}

/* Four of K for two outputs and two pixels: 8 SMLAD. */
#define CONV_FOUR                                                                                                      \
    "ldrd %[w0], %[w1], [%[w]], #8\n\tldrd %[x0], %[x1], [%[x]], #8\n\t"                                               \
    "sxtb16 %[t], %[w0]\n\tsmlad %[a], %[t], %[x0], %[a]\n\tsmlad %[b], %[t], %[x1], %[b]\n\t"                         \
    "sxtb16 %[t], %[w1]\n\tsmlad %[c], %[t], %[x0], %[c]\n\tsmlad %[d], %[t], %[x1], %[d]\n\t"                         \
    "ldrd %[x0], %[x1], [%[x]], #8\n\t"                                                                                \
    "sxtb16 %[t], %[w0], ror #8\n\tsmlad %[a], %[t], %[x0], %[a]\n\tsmlad %[b], %[t], %[x1], %[b]\n\t"                 \
    "sxtb16 %[t], %[w1], ror #8\n\tsmlad %[c], %[t], %[x0], %[c]\n\tsmlad %[d], %[t], %[x1], %[d]\n\t"

#define CONV_OPERANDS                                                                                                  \
    [a] "+&r"(a), [b] "+&r"(b), [c] "+&r"(c), [d] "+&r"(d), [x] "+&r"(from), [w] "+&r"(w), [w0] "=&r"(w0),             \
        [w1] "=&r"(w1), [x0] "=&r"(x0), [x1] "=&r"(x1), [t] "=&r"(v)

void mh_conv_s8(const mh_geometry *s, const int8_t *x, const int8_t *weights, const void *table, int8_t *y,
                const mh_range_s8 *range, void *scratch) {
    uint32_t oc = s->oc, fours = ((uint32_t)s->kh * s->kw * s->ic + 3) / 4, num = (uint32_t)s->oh * s->ow;
    uint32_t *wide = scratch, pair = (uint32_t)range->in_zero & 0xffffu, n = num;
    int8_t *bytes = (int8_t *)(wide + 4 * fours), *out = y;
    int32_t zero = range->out_zero, top = -(int32_t)s->pt, left = -(int32_t)s->pl, column = 0;
    pair |= pair << 16;
    while (n) {
        uint32_t both = n > 1;
        for (uint32_t lane = 0; lane <= both; lane++) {
            if (s->ic % 4)
                gather_bytes(s, x, top, left, range->in_zero, wide + lane, bytes, fours);
            else
                gather(s, x, top, left, pair, wide + lane);
            left += s->sw;
            if (++column == s->ow)
                column = 0, left = -(int32_t)s->pl, top += s->sh;
        }
        const mh_requant_s8 *t = table;
        const int8_t *w = weights;
        int8_t *next = out + (both ? oc : 0); /* without a second pixel its results go below the first's, before them */
        for (uint32_t o = 0; o < oc; o += 2, t += 2) {
            uint32_t a = (uint32_t)t[0].bias, b = a, c = (uint32_t)t[1].bias, d = c, w0, w1, x0, x1, v;
            const uint32_t *from = wide;
            if (fours & 1)
                __asm__ volatile(CONV_FOUR : CONV_OPERANDS : : "cc", "memory");
            uint32_t times = fours >> 1;
            if (times & 1)
                __asm__ volatile(CONV_FOUR CONV_FOUR : CONV_OPERANDS : : "cc", "memory");
            times >>= 1;
            if (times)
                __asm__ volatile("1:\n\t" CONV_FOUR CONV_FOUR CONV_FOUR CONV_FOUR "subs %[n], #1\n\tbne 1b"
                                 : CONV_OPERANDS, [n] "+&r"(times)
                                 :
                                 : "cc", "memory");
            next[o] = requantise(b, t[0].multiplier, t[0].shift, zero);
            out[o] = requantise(a, t[0].multiplier, t[0].shift, zero);
            if (o + 1 < oc) {
                next[o + 1] = requantise(d, t[1].multiplier, t[1].shift, zero);
                out[o + 1] = requantise(c, t[1].multiplier, t[1].shift, zero);
            }
        }
        n -= 1 + both;
        out += (1 + both) * oc;
    }
    clamp(y, num * oc, range);
}

/* What a channel's rows have in common. */
typedef struct {
    const int8_t *w;
    const mh_requant_s8 *t;
    uint32_t line; /* bytes from one line of the band to the next */
    int32_t zero;
    uint32_t step; /* from one output to the next: oc */
    uint32_t ow;
} channel;

static inline uint32_t pair_of(const int8_t *w) { return ((uint32_t)w[0] & 0xffffu) | (uint32_t)w[1] << 16; }

/* Three taps of a line for two outputs side by side, or for one. */
#define TWO(line, first, last)                                                                                                   \
    __asm__ volatile("ldrd %[x], %[z], [%[l]], #4\n\t"                                                                 \
                     "smlad %[a], %[x], %[p], %[a]\n\tsmlatb %[b], %[x], %[p], %[b]\n\t"                              \
                     "smlabt %[a], %[z], %[q], %[a]\n\tsmlad %[b], %[z], %[q], %[b]"                                   \
                     : [l] "+&r"(line), [a] "+&r"(a), [b] "+&r"(b), [x] "=&r"(x), [z] "=&r"(z)                            \
                     : [p] "r"(first), [q] "r"(last)                                                                          \
                     : "memory")
#define ONE(line, first, last)                                                                                                   \
    __asm__ volatile("ldrd %[x], %[z], [%[l]], #4\n\t"                                                                 \
                     "smlad %[a], %[x], %[p], %[a]\n\tsmlabt %[a], %[z], %[q], %[a]"                                   \
                     : [l] "+&r"(line), [a] "+&r"(a), [x] "=&r"(x), [z] "=&r"(z)                                          \
                     : [p] "r"(first), [q] "r"(last)                                                                          \
                     : "memory")

/* `rows` rows of output of a 3x3 kernel with stride 1, two numbers at a time, or with stride 2 one by one. */
__attribute__((noinline)) /* it needs every register */
static void plane_3x3(const channel *c, const int8_t *lines, int8_t *y, uint32_t rows, uint32_t stride, uint32_t down) {
    const int8_t *w = c->w;
    uint32_t w01 = pair_of(w), w12 = pair_of(w + 1), w34 = pair_of(w + 3), w45 = pair_of(w + 4), w67 = pair_of(w + 6),
             w78 = pair_of(w + 7);
    int32_t multiplier = c->t->multiplier, shift = c->t->shift, zero = c->zero, bias = c->t->bias;
    uint32_t line = c->line, step = c->step;
    for (; rows; rows--, lines += down) {
        const int8_t *l0 = lines, *l1 = l0 + line, *l2 = l1 + line;
        uint32_t n = c->ow;
        if (stride == 1)
            for (; n >= 2; n -= 2, y += 2 * step) {
                uint32_t a = (uint32_t)bias, b = a, x, z;
                TWO(l0, w01, w12);
                TWO(l1, w34, w45);
                TWO(l2, w67, w78);
                y[0] = requantise(a, multiplier, shift, zero);
                y[step] = requantise(b, multiplier, shift, zero);
            }
        for (; n; n--, y += step) {
            uint32_t a = (uint32_t)bias, x, z;
            ONE(l0, w01, w12);
            ONE(l1, w34, w45);
            ONE(l2, w67, w78);
            *y = requantise(a, multiplier, shift, zero);
        }
    }
}

static void plane_of_any(const mh_geometry *s, const channel *c, const int8_t *lines, int8_t *y, uint32_t rows) {
    for (; rows; rows--, lines += c->line * s->sh)
        for (uint32_t q = 0; q < c->ow; q++, y += c->step) {
            uint32_t sum = (uint32_t)c->t->bias;
            const int8_t *w = c->w, *line = lines + 2 * q * s->sw;
            for (uint32_t i = 0; i < s->kh; i++, line += c->line * s->dh) {
                const int16_t *at = (const void *)line;
                for (uint32_t j = 0; j < s->kw; j++, at += s->dw)
                    sum += (uint32_t)(*at * *w++);
            }
            *y = requantise(sum, c->t->multiplier, c->t->shift, c->zero);
        }
}

/* One channel's part of the band, from every ic-th byte of the map. */
static void read_plane(const int8_t *from, uint32_t ic, uint32_t skip, int16_t *to, uint32_t line, uint32_t height,
                       uint32_t width) {
    for (; height; height--, to += line, from += skip) {
        int16_t *at = to;
        uint32_t n = width;
        for (; n >= 4; n -= 4, at += 4) {
            int16_t a = *from, b = *(from += ic), c = *(from += ic), d = *(from += ic);
            at[0] = a, at[1] = b, at[2] = c, at[3] = d;
            from += ic;
        }
        for (; n; n--, from += ic)
            *at++ = *from;
    }
}

void mh_depthwise_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                     const mh_range_s8 *range, void *scratch) {
    uint32_t rows, line = band(s, &rows) / 2, times = s->ic ? (uint32_t)s->oc / s->ic : 0, taps = (uint32_t)s->kh * s->kw;
    uint32_t wide = line > s->pl ? line - s->pl : 0, small = s->kh == 3 && s->kw == 3 && s->dh == 1 && s->dw == 1 && (s->sw == 1 || s->sw == 2);
    int16_t *lines = scratch;
    wide = wide < s->iw ? wide : s->iw;
    for (uint32_t first = 0; first < s->oh; first += rows) {
        uint32_t num = s->oh - first < rows ? s->oh - first : rows;
        int32_t top = (int32_t)(first * s->sh) - s->pt;
        int32_t end = top + (int32_t)((num - 1) * s->sh + ((uint32_t)s->kh - 1) * s->dh + 1);
        /* the padding is the same for all channels */
        for (int16_t *at = lines; at < lines + (uint32_t)(end - top) * line; at++)
            *at = (int16_t)range->in_zero;
        int32_t from = top < 0 ? 0 : top, last = end < s->ih ? end : s->ih;
        uint32_t height = last > from ? (uint32_t)(last - from) : 0;
        int16_t *inside = lines + (uint32_t)(from - top) * line + s->pl;
        for (uint32_t k = 0; k < s->ic; k++) {
            read_plane(x + (uint32_t)from * s->iw * s->ic + k, s->ic, ((uint32_t)s->iw - wide) * s->ic, inside, line,
                       wide ? height : 0, wide);
            for (uint32_t o = k * times; o < (k + 1) * times; o++) {
                channel c = {w + o * taps, (const mh_requant_s8 *)table + o, 2 * line, range->out_zero, s->oc, s->ow};
                int8_t *out = y + first * s->ow * s->oc + o;
                if (small)
                    plane_3x3(&c, scratch, out, num, s->sw, 2 * line * s->sh);
                else
                    plane_of_any(s, &c, scratch, out, num);
            }
        }
    }
    clamp(y, (uint32_t)s->oh * s->ow * s->oc, range);
}

#endif
