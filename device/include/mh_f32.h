/* The float32 kernels, one example at a time: values, gradients, losses, SGD.

   Every sum is sequential in the order that its comment gives, each product and each sum is rounded on its own, and none
   is fused: so host, Cortex-M with and without an FPU, and the twin in Python (src/midhaul/devices/arithmetic.py) give
   the same bits. Maps are CHW, weights are laid out as torch has them. No kernel keeps anything or allocates anything;
   a buffer may only be both read and written where the comment says so.

   `adds`: 0 writes a gradient, 1 adds it to what is there. Gradients of parameters are always added. */
#ifndef MH_F32_H
#define MH_F32_H

#include <stdint.h>

/* A window that slides over a map. Input [ic, ih, iw], output [oc, oh, ow], kernel [kh, kw], stride [sh, sw] >= 1,
   padding at the top and the left, dilation [dh, dw] >= 1. Taps outside of the map are left out of every sum. */
typedef struct {
    uint16_t ic, ih, iw, oc, oh, ow;
    uint8_t kh, kw, sh, sw, pt, pl, dh, dw;
    uint16_t groups;
} mh_geometry;

/* Dense. x [num_in], w [num_out, num_in], b [num_out] or NULL, y and g [num_out].
   y[o] = b[o] or 0, then += w[o][i] * x[i], i ascending. */
void mh_dense_f32(const float *x, const float *w, const float *b, float *y, uint32_t num_in, uint32_t num_out);
/* dx[i]: s = 0, s += w[o][i] * g[o], o ascending; then s is written or added. */
void mh_dense_input_f32(const float *g, const float *w, float *dx, uint32_t num_in, uint32_t num_out, int adds);
/* dw[o][i] += g[o] * x[i]; db[o] += g[o]. Either may be NULL. */
void mh_dense_params_f32(const float *g, const float *x, float *dw, float *db, uint32_t num_in, uint32_t num_out);

/* Convolution over all input channels. w [oc, ic, kh, kw], b [oc] or NULL.
   y = b or 0, then += w * x over ic, kh, kw. */
void mh_conv_f32(const mh_geometry *s, const float *x, const float *w, const float *b, float *y);
/* dx: sum from 0 of w * g over oc, kh, kw; then written or added. */
void mh_conv_input_f32(const mh_geometry *s, const float *g, const float *w, float *dx, int adds);
/* dw: sum from 0 of g * x over oh, ow; then added. db: the same of g. Either may be NULL. */
void mh_conv_params_f32(const mh_geometry *s, const float *g, const float *x, float *dw, float *db);

/* Depthwise: oc is a multiple of ic, output channel o reads input channel o / (oc / ic). w [oc, 1, kh, kw].
   The same sums as above over the one input channel. */
void mh_depthwise_f32(const mh_geometry *s, const float *x, const float *w, const float *b, float *y);
void mh_depthwise_input_f32(const mh_geometry *s, const float *g, const float *w, float *dx, int adds);
void mh_depthwise_params_f32(const mh_geometry *s, const float *g, const float *x, float *dw, float *db);

/* Pools over each of the ic channels; every window has a tap inside the map.
   The first of the largest, in the order kh, kw, is taken; it gets the gradient. dx is zeroed first unless `adds`, then
   each window adds to it, in the order oh, ow. */
void mh_max_pool_f32(const mh_geometry *s, const float *x, float *y);
void mh_max_pool_input_f32(const mh_geometry *s, const float *g, const float *x, float *dx, int adds);
/* The sum from 0 over kh, kw of the taps inside, times (1 / their number). The gradient: g * (1 / number), as above. */
void mh_average_pool_f32(const mh_geometry *s, const float *x, float *y);
void mh_average_pool_input_f32(const mh_geometry *s, const float *g, float *dx, int adds);

/* Into [low, high]; y may be x. */
void mh_clamp_f32(const float *x, float *y, uint32_t n, float low, float high);
/* g where low < y < high, else 0; y is what mh_clamp_f32 gave, dx may be g. */
void mh_clamp_grad_f32(const float *y, const float *g, float *dx, uint32_t n, float low, float high, int adds);
/* y = a + b; y may be a or b. */
void mh_add_f32(const float *a, const float *b, float *y, uint32_t n);
/* dx = g, or dx += g. */
void mh_copy_f32(const float *g, float *dx, uint32_t n, int adds);
/* The place of the first of the largest; n >= 1. */
uint32_t mh_argmax_f32(const float *x, uint32_t n);

/* Group norm over x [c, positions], c / groups channels together, n numbers each. weight and bias [c], or NULL for 1, 0.
   mean = sum / n, var = sum of (x - mean)^2 / n, rstd = 1 / sqrt(var + eps), y = ((x - mean) * rstd) * weight + bias;
   sums from 0 over channels, positions. y may be x. */
void mh_group_norm_f32(const float *x, const float *weight, const float *bias, float *y, uint32_t c, uint32_t positions,
                       uint32_t groups, float eps);
/* With xhat = (x - mean) * rstd and u = g * weight, per group: a = (sum of u) / n, b = (sum of u * xhat) / n,
   dx = ((u - a) - xhat * b) * rstd. dweight += sum of g * xhat, dbias += sum of g, over positions.
   dx may be g; dx, dweight, dbias may be NULL. */
void mh_group_norm_grad_f32(const float *x, const float *weight, const float *g, float *dx, float *dweight, float *dbias,
                            uint32_t c, uint32_t positions, uint32_t groups, float eps, int adds);

/* A low-rank adapter beside a dense layer (ic numbers in, oc out, all else 1) or a 1x1 convolution without padding:
   a [rank, ic], b [oc, rank], scratch [rank, oh * ow].
   t = sum from 0 of a * x over ic; y += scale * (sum from 0 of b * t over rank). */
void mh_lora_f32(const mh_geometry *s, const float *x, const float *a, const float *b, float *y, uint32_t rank,
                 float scale, float *scratch);
/* db += scale * (sum from 0 of g * t over positions); then u = scale * (sum from 0 of b * g over oc);
   da += sum from 0 of u * x over positions; dx += sum from 0 of a * u over rank. dx, da and db may be NULL.
   dx is always added to: run the layer's own gradient first. */
void mh_lora_grad_f32(const mh_geometry *s, const float *g, const float *x, const float *a, const float *b, float *dx,
                      float *da, float *db, uint32_t rank, float scale, float *scratch);

/* Losses of one row of n logits with label y; y < 0: the label's term and its gradient are 0; y < n always.
   They give the loss and write g = (d loss / d logits) * scale, if g isn't NULL. g may be logits. */
/* (log(sum of exp(l - max)) - (l[y] - max)); g = (exp(l - max) * (1 / sum) - onehot) * scale. */
float mh_cross_entropy_f32(const float *logits, uint32_t n, int32_t y, float scale, float *g);
/* sum of (l - onehot)^2, / n; g = (l - onehot) * ((2 / n) * scale). */
float mh_mse_f32(const float *logits, uint32_t n, int32_t y, float scale, float *g);
/* (1 - soft_weight) * cross entropy + soft_weight * temperature^2 * KL(softmax(soft / T) || softmax(logits / T));
   scratch [2 * n]; g may not be logits. Hinton, Vinyals and Dean, 2015, section 2. */
float mh_distillation_f32(const float *logits, const float *soft, uint32_t n, int32_t y, float temperature,
                          float soft_weight, float scale, float *g, float *scratch);
/* (1 - soft_weight) * mse + soft_weight * mean of (logits - soft)^2; g may not be logits. */
float mh_mse_distillation_f32(const float *logits, const float *soft, uint32_t n, int32_t y, float soft_weight,
                              float scale, float *g);

/* One step of SGD over n weights. In this order: slope = sum; if mu: += mu * (w - start); if decay: += decay * w;
   if momentum: velocity = velocity * momentum + slope, slope = velocity; w -= lr * slope.
   velocity may be NULL where momentum is 0, start where mu is 0. */
void mh_sgd_f32(float *w, const float *sum, float *velocity, const float *start, uint32_t n, float lr, float momentum,
                float decay, float mu);

#endif
