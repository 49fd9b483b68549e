#include "mh_s8.h"

int mh_packing(void) { return MH_S8_PACKING; }

static int8_t clip(int32_t v, int32_t low, int32_t high) {
    v = v < low ? low : v;
    return (int8_t)(v > high ? high : v);
}

void mh_max_pool_s8(const mh_geometry *s, const int8_t *x, int8_t *y, int32_t low, int32_t high) {
    for (int32_t r = 0; r < s->oh; r++)
        for (int32_t q = 0; q < s->ow; q++, y += s->ic)
            for (uint32_t c = 0; c < s->ic; c++) {
                int32_t most = -128;
                for (int32_t i = 0; i < s->kh; i++) {
                    int32_t row = r * s->sh - s->pt + i * s->dh;
                    if (row < 0 || row >= s->ih)
                        continue;
                    for (int32_t j = 0; j < s->kw; j++) {
                        int32_t column = q * s->sw - s->pl + j * s->dw;
                        if (column < 0 || column >= s->iw)
                            continue;
                        int32_t v = x[((uint32_t)row * s->iw + (uint32_t)column) * s->ic + c];
                        most = v > most ? v : most;
                    }
                }
                y[c] = clip(most, low, high);
            }
}

void mh_average_pool_s8(const mh_geometry *s, const int8_t *x, int8_t *y, int32_t low, int32_t high) {
    for (int32_t r = 0; r < s->oh; r++)
        for (int32_t q = 0; q < s->ow; q++, y += s->ic)
            for (uint32_t c = 0; c < s->ic; c++) {
                int32_t sum = 0, num = 0;
                for (int32_t i = 0; i < s->kh; i++) {
                    int32_t row = r * s->sh - s->pt + i * s->dh;
                    if (row < 0 || row >= s->ih)
                        continue;
                    for (int32_t j = 0; j < s->kw; j++) {
                        int32_t column = q * s->sw - s->pl + j * s->dw;
                        if (column < 0 || column >= s->iw)
                            continue;
                        sum += x[((uint32_t)row * s->iw + (uint32_t)column) * s->ic + c];
                        num++;
                    }
                }
                num = num ? num : 1; /* a blob that is wrong must not divide by zero */
                y[c] = clip((sum < 0 ? sum - num / 2 : sum + num / 2) / num, low, high);
            }
}

void mh_add_s8(const int8_t *a, const int8_t *b, const void *table, int8_t *y, uint32_t n, const mh_range_s8 *range) {
    const mh_add_table_s8 *t = table;
    uint32_t bias = (uint32_t)t->bias, shift = (uint32_t)t->shift & 31u;
    int32_t low = range->low, high = range->high, zero = range->out_zero;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t sum = bias + (uint32_t)a[i] * (uint32_t)t->multiplier_a + (uint32_t)b[i] * (uint32_t)t->multiplier_b;
        y[i] = clip(((int32_t)sum >> shift) + zero, low, high);
    }
}

void mh_quantise_f32_s8(const float *x, int8_t *y, uint32_t c, uint32_t positions, float scale, int32_t zero, int32_t low,
                        int32_t high) {
    float inverse = 1.0f / scale;
    for (uint32_t k = 0; k < c; k++)
        for (uint32_t p = 0; p < positions; p++) {
            float v = x[k * positions + p] * inverse;
            if (!(v > -1024.0f))
                v = -1024.0f;
            if (v > 1024.0f)
                v = 1024.0f;
            /* 1.5 * 2^23: the sum's last bit is worth 1, so the adder rounds half to even */
            union {
                float real;
                int32_t bits;
            } sum = {v + 12582912.0f};
            y[p * c + k] = clip(sum.bits - 0x4b400000 + zero, low, high);
        }
}

void mh_dequantise_s8_f32(const int8_t *x, float *y, uint32_t c, uint32_t positions, float scale, int32_t zero) {
    for (uint32_t k = 0; k < c; k++)
        for (uint32_t p = 0; p < positions; p++)
            y[k * positions + p] = (float)((int32_t)x[p * c + k] - zero) * scale;
}
