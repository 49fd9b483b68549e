#include "blocks.h"

MK_INLINE void block(const int num, const int vectors, const mk_outer *p, const float *a, const float *g,
                     const int64_t *offsets, float *w)
{
    vf sum[MK_ROWS][2];
    MK_UNROLL
    for (int m = 0; m < num; m++) {
        MK_UNROLL
        for (int n = 0; n < vectors; n++)
            sum[m][n] = (vf){0};
    }
    const int64_t a_column = p->a_column, g_column = p->g_column, columns = p->columns;
    for (int64_t y = 0; y < p->rows; y++) {
        const float *here = a + y * p->a_row, *slope = g + y * p->g_row;
        for (int64_t x = 0; x < columns; x++) {
            vf right[2];
            MK_UNROLL
            for (int n = 0; n < vectors; n++)
                right[n] = load(slope + n * MK_LANES);
            MK_UNROLL
            for (int m = 0; m < num; m++) {
                vf left = all(here[offsets[m]]);
                MK_UNROLL
                for (int n = 0; n < vectors; n++)
                    sum[m][n] += left * right[n];
            }
            here += a_column;
            slope += g_column;
        }
    }
    const vf rate = all(p->rate);
    MK_UNROLL
    for (int m = 0; m < num; m++) {
        MK_UNROLL
        for (int n = 0; n < vectors; n++) {
            float *to = w + m * p->ldw + n * MK_LANES;
            store(to, p->rate != 0.0f ? load(to) - rate * sum[m][n] : load(to) + sum[m][n]);
        }
    }
}

#define CASE(num, vectors)                                                                                             \
    case num:                                                                                                          \
        block(num, vectors, p, a, g, offsets, w);                                                                      \
        break;

static void one(int num, const mk_outer *p, const float *a, const float *g, const int64_t *offsets, float *w)
{
    switch (num) {
        MK_EACH_ROWS(CASE, 1)
    }
}

static void two(int num, const mk_outer *p, const float *a, const float *g, const int64_t *offsets, float *w)
{
    switch (num) {
        MK_EACH_ROWS(CASE, 2)
    }
}

void mk_outer_f32(const mk_outer *p, const float *a, const float *g, float *w)
{
    int64_t vectors = p->ldw / MK_LANES, num = (p->num_k + MK_ROWS - 1) / MK_ROWS;
    for (int64_t v = 0; v < vectors;) {
        int wide = vectors - v == 1 ? 1 : 2;
        for (int64_t i = 0, k = 0; i < num; i++) { /* blocks of nearly the same size */
            int rows = (int)((p->num_k - k + num - i - 1) / (num - i));
            float *to = w + k * p->ldw + v * MK_LANES;
            (wide == 1 ? one : two)(rows, p, a, g + v * MK_LANES, p->offsets + k, to);
            k += rows;
        }
        v += wide;
    }
}
