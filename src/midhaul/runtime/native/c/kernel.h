#ifndef MK_KERNEL_H
#define MK_KERNEL_H

#include "blocks.h"

/* A chain of layers and what trains it. Inside, an image lies as [height][width][channels], with the zeros that the next
   layer pads it with around it; a weight lies as [tap row][tap column][channel in][channel out], the last rounded up to
   whole vectors. A sequence is an image of height 1, a row of features one of height and width 1. */

enum { MK_CONV, MK_DEPTHWISE, MK_NORM, MK_PLAIN, MK_GROUP }; /* kind of layer; MK_PLAIN has no parameters */
enum { MK_NO_POOL, MK_MAX, MK_MEAN };
enum { MK_CROSS_ENTROPY, MK_MSE };

/* One layer, then an activation, then a pool. `out` is the extent before the pool, `end` behind it. A mean never follows
   an activation in the same layer. Parameters are numbers in the job's list, -1 if there is none. */
typedef struct {
    int32_t kind, in_h, in_w, in_c, pad_top, pad_left, pad_bottom, pad_right;
    int32_t kernel_h, kernel_w, stride_h, stride_w, out_h, out_w, out_c, act;
    int32_t pool, pool_h, pool_w, pool_stride_h, pool_stride_w, pool_pad_h, pool_pad_w, end_h, end_w;
    int32_t weight, bias, mean, variance, count, groups;
    float eps, momentum; /* momentum below 0: the mean of all batches so far */
} mk_layer;

/* A parameter as torch has it: [out][in][taps]. `step` is from one device's to the next, 0 if all start alike; `end` is
   where each device's goes, NULL if nowhere. */
typedef struct {
    const float *start;
    float *end;
    int64_t step, out, in, taps, trained;
} mk_parameter;

/* What all devices of a call have in common, and where each one's rows and answers are.

   x: a row behind another; or, if `bytes` isn't NULL, the 256 numbers that those stand for.
   rows: [first[num_devices]], the rows of x of one device after another; device d has first[d] ..< first[d + 1].
   labels, targets: one a row in that order, or NULL; soft: row r of device d at soft + d * soft_device + r * soft_row.
   batch, epochs, steps, step, epoch, device: one a device. loss, seen: one a device.
   slopes: at the outputs of the rows in the order of `rows`, [channels][height][width] each; if NULL, mk_pass writes these
   outputs to `out` in the same way. */
typedef struct {
    const mk_layer *layers;
    const mk_parameter *parameters;
    const float *x;
    const uint8_t *bytes;
    const int64_t *rows, *first, *labels;
    const float *targets, *soft, *slopes;
    const int64_t *batch, *epochs, *steps, *step, *epoch, *device;
    double *loss, *seen;
    float *out;
    double *spent; /* NULL, or [num_layers][2]: seconds forward and backward of each layer, on one thread */
    int64_t num_layers, num_parameters, num_devices, row_size, soft_device, soft_row;
    int64_t threads, loss_kind, training;
    uint64_t seed, round, use;
    float lr, momentum, weight_decay, proximal_mu, temperature, soft_weight;
} mk_job;

/* What is known of a layer before anything is run. Sizes are numbers of floats, places are in a thread's memory. */
typedef struct {
    int64_t row, image;             /* of the input with its padding: a row of it, all of it */
    int64_t inside;                 /* from its start to the first number that isn't padding */
    int64_t depth, segments;        /* of the product */
    int64_t ldw, ldt, mid;          /* of the weight, of its transpose, of a place of the scratch image */
    int64_t in, slope, picks, back; /* the input, the slope at it, which of a pool was largest, the transpose */
    int64_t moments, sums;          /* a norm's mean and scale; sums of its backward pass */
    int dense;
} mk_place;

typedef struct {
    const mk_job *job;
    mk_place *places;             /* [num_layers + 1] */
    int64_t *offset;              /* [num_parameters + 1] of each parameter, packed */
    int64_t *taps;                /* [layers][segments * depth], where mk_outer_f32 reads; one behind another */
    int64_t *tap_start;           /* [num_layers] */
    float *shared;                /* the parameters that all start with, packed */
    int64_t total, most, lowest;  /* floats of a thread, rows of a part of a batch, the lowest layer that is trained */
    int64_t weights, start, gradient, velocity, scratch, out_stride, widest;
    int plain;                    /* whether a step is w -= lr * g alone */
    int64_t next, failed;         /* the next device to be done; whether memory ran out */
} mk_run;

/* One thread's memory. */
typedef struct {
    const mk_run *run;
    float *memory;
    const float **a;
    float **c;
    int fused; /* weights of dense layers are moved at once */
    int stale; /* the transposed weights are of an earlier step */
} mk_thread;

MK_INLINE int mk_lanes(int64_t channels, int64_t c)
{
    return channels - c < MK_LANES ? (int)(channels - c) : MK_LANES;
}

/* Written so that NaN stays NaN. */
MK_INLINE vf mk_activated(vf v, int act)
{
    if (act == MK_RELU || act == MK_RELU6)
        v = choose(v < 0.0f, (vf){0}, v);
    if (act == MK_RELU6)
        v = choose(v > 6.0f, all(6.0f), v);
    return v;
}

/* Takes `num` rows through a layer, or the slopes at what it gave for them back through it. */
void mk_layer_pass(mk_thread *t, int64_t layer, int64_t num, int back);
void mk_depthwise_forward(mk_thread *t, int64_t layer, int64_t image);
void mk_depthwise_backward(mk_thread *t, int64_t layer, int64_t image, const float *mid);
void mk_group_forward(mk_thread *t, int64_t layer, int64_t image);
void mk_group_backward(mk_thread *t, int64_t layer, int64_t image);
void mk_norm_forward(mk_thread *t, int64_t layer, int64_t num);
void mk_norm_backward(mk_thread *t, int64_t layer, int64_t num);

/* Moves a layer's output, an image of `mid`, through its pool to the next layer's input; and the slopes back: gives the
   slope at the layer's output, before activation and pool, as [out_h * out_w][mid]. */
void mk_pool_forward(mk_thread *t, int64_t layer, int64_t image, const float *mid);
void mk_pool_backward(mk_thread *t, int64_t layer, int64_t image, float *mid);

/* Give the loss of a row, and its slope times `scale` in g. */
double mk_cross_entropy_f32(const float *z, int64_t n, int64_t y, float scale, float *g);
double mk_mse_f32(const float *z, int64_t n, int64_t y, const float *target, float scale, float *g);
double mk_distillation_f32(const float *z, const float *soft, int64_t n, int64_t y, float temperature, float weight,
                           float scale, float *g);

/* Writes the order of an epoch: 0 ..< num, shuffled. */
void mk_permutation(uint64_t seed, uint32_t round, uint32_t device, uint32_t use, int64_t num, int64_t *order);

/* Train every device; or take its rows forward, and give their outputs or, from the slopes at these, the gradient.
   Give 0, or 1 if memory ran out. */
int mk_fit(const mk_job *job);
int mk_pass(const mk_job *job);

#endif
