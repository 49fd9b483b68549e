#include "blocks.h"

#include <math.h>

MK_INLINE void block(const int rows, const int vectors, const mk_product *p, const float *const *a, const float *b,
                     const float *bias, float *const *c, int64_t at, int last)
{
    vf sum[MK_ROWS][3];
    const float *from[MK_ROWS];
    const int64_t depth = p->depth, ldb = p->ldb, step = p->step;
    MK_UNROLL
    for (int m = 0; m < rows; m++) {
        MK_UNROLL
        for (int n = 0; n < vectors; n++)
            sum[m][n] = bias ? load(bias + n * MK_LANES) : (vf){0};
    }
    for (int64_t s = 0; s < p->segments; s++) {
        MK_UNROLL
        for (int m = 0; m < rows; m++)
            from[m] = a[m] + s * step;
        for (int64_t k = 0; k < depth; k++) {
            vf right[3];
            MK_UNROLL
            for (int n = 0; n < vectors; n++)
                right[n] = load(b + n * MK_LANES);
            MK_UNROLL
            for (int m = 0; m < rows; m++) {
                vf left = all(from[m][k]);
                MK_UNROLL
                for (int n = 0; n < vectors; n++)
                    sum[m][n] += left * right[n];
            }
            b += ldb;
        }
    }
    /* Two loops, not one with a branch in it: these lines are compiled once for every shape of a block. */
    if (p->mode == MK_ADD) {
        MK_UNROLL
        for (int m = 0; m < rows; m++) {
            float *to = c[m] + at;
            MK_UNROLL
            for (int n = 0; n < vectors - 1; n++)
                store(to + n * MK_LANES, load(to + n * MK_LANES) + sum[m][n]);
            to += (vectors - 1) * MK_LANES;
            store_first(to, load_first(to, last) + sum[m][vectors - 1], last);
        }
        return;
    }
    /* Written so that NaN stays NaN. */
    const vf low = all(p->mode == MK_STORE ? -INFINITY : 0.0f), high = all(p->mode == MK_RELU6 ? 6.0f : INFINITY);
    MK_UNROLL
    for (int m = 0; m < rows; m++) {
        MK_UNROLL
        for (int n = 0; n < vectors; n++) {
            vf v = choose(sum[m][n] < low, low, sum[m][n]);
            v = choose(v > high, high, v);
            if (n < vectors - 1)
                store(c[m] + at + n * MK_LANES, v);
            else
                store_first(c[m] + at + n * MK_LANES, v, last);
        }
    }
}

#define ARGUMENTS p, a, b, bias, c, at, last
#define CASE(rows, vectors)                                                                                            \
    case rows:                                                                                                         \
        block(rows, vectors, ARGUMENTS);                                                                               \
        break;

static void one(int rows, const mk_product *p, const float *const *a, const float *b, const float *bias,
                float *const *c, int64_t at, int last)
{
    switch (rows) {
        MK_EACH_ROWS(CASE, 1)
    }
}

static void two(int rows, const mk_product *p, const float *const *a, const float *b, const float *bias,
                float *const *c, int64_t at, int last)
{
    switch (rows) {
        MK_EACH_ROWS(CASE, 2)
    }
}

static void three(int rows, const mk_product *p, const float *const *a, const float *b, const float *bias,
                  float *const *c, int64_t at, int last)
{
    switch (rows) {
        CASE(1, 3) CASE(2, 3) CASE(3, 3) CASE(4, 3)
#if MK_ROWS > 6
        CASE(5, 3) CASE(6, 3) CASE(7, 3) CASE(8, 3) CASE(9, 3)
#endif
    }
}

void mk_product_f32(const mk_product *p, const float *const *a, float *const *c)
{
    int64_t vectors = (p->columns + MK_LANES - 1) / MK_LANES;
    for (int64_t v = 0; v < vectors;) {
        int64_t left = vectors - v, wide = left == 1 ? 1 : left % 2 ? 3 : 2;
        int64_t most = wide == 3 ? MK_ROWS * 2 / 3 : MK_ROWS;
        int64_t num = (p->rows + most - 1) / most, at = v * MK_LANES;
        int last = (int)(v + wide == vectors ? p->columns - (vectors - 1) * MK_LANES : MK_LANES);
        const float *b = p->b + at, *bias = p->bias ? p->bias + at : NULL;
        for (int64_t i = 0, m = 0; i < num; i++) { /* blocks of nearly the same size */
            int rows = (int)((p->rows - m + num - i - 1) / (num - i));
            (wide == 1 ? one : wide == 2 ? two : three)(rows, p, a + m, b, bias, c + m, at, last);
            m += rows;
        }
        v += wide;
    }
}
