#ifndef MK_BLOCKS_H
#define MK_BLOCKS_H

#include "vector.h"

/* The two sums that all layers are made of. Both hold a block of the result in registers, up to MK_ROWS rows by two
   vectors (or two thirds as many rows by three), and read their inputs where they lie: a row of a product is any place
   in memory, so that a convolution is a product over the windows of its input, which are never copied. */

enum { MK_STORE, MK_RELU, MK_RELU6, MK_ADD };

/* c[m][n] = bias[n] + sum over segment s and k of a[m][s * step + k] * b[(s * depth + k) * ldb + n].

   a: `rows` pointers; b: [segments * depth][ldb], zeros behind the last column; bias: [ldb] or NULL; c: `rows` pointers.
   `mode` says what becomes of c: MK_ADD adds to it, MK_RELU and MK_RELU6 store what is left of the sum.
   Writes `columns` numbers a row; rows that overlap in c are added one after another. */
typedef struct {
    int64_t rows, columns, segments, depth, step, ldb;
    const float *b, *bias;
    int mode;
} mk_product;

void mk_product_f32(const mk_product *p, const float *const *a, float *const *c);

/* w[k][n] += sum over row y and column x of a[y * a_row + x * a_column + offsets[k]] * g[y * g_row + x * g_column + n];
   with `rate` not 0: w[k][n] -= rate * that sum.

   w: [num_k][ldw]; g has ldw numbers a place, zeros behind the last column. */
typedef struct {
    int64_t num_k, ldw, rows, columns, a_row, a_column, g_row, g_column;
    const int64_t *offsets;
    float rate;
} mk_outer;

void mk_outer_f32(const mk_outer *p, const float *a, const float *g, float *w);

/* to[c][r] = from[r][c]; what lies behind `rows` numbers of a row of `to` stays as it is. */
void mk_transpose_f32(const float *from, int64_t rows, int64_t columns, int64_t ldf, float *to, int64_t ldt);

#endif
