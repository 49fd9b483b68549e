#ifndef MK_ENCODER_H
#define MK_ENCODER_H

#include "kernel.h"

/* A transformer behind a cut, and the steps that train it: patches to tokens, blocks of attention and two dense layers
   with layer norm first, a last norm, the mean over the tokens, a linear layer; cross entropy.

   Letters: L tokens, P numbers of a patch, E width, H heads, F width between the two dense layers, C classes. E and F are
   multiples of 16, and so is `padded`, P rounded up. */
typedef struct {
    int64_t tokens, patch, padded, width, heads, inner, classes, depth;
    int64_t row;          /* numbers of a row of x */
    const int64_t *where; /* [L][P]: which of them a token has; -1 for one that pads it */
    float eps;
} mk_encoder;

enum { MK_SGD, MK_ADAM };

/* Steps on batches, one after another; or, without labels, the logits of their rows alone.

   weights, first, second: the parameters and the optimiser's means, each [mk_encoder_size], as `place` has them, with
   zeros behind what is padded; they are changed. x: [rows][row]; a step takes num[step] rows of it from row start[step] on.
   labels: one a row of x, or NULL. slopes: as x, for the gradient of each step's mean loss. loss: [steps], the mean.
   out: [rows][C], for the logits, where there are no labels. */
typedef struct {
    const mk_encoder *encoder;
    const float *x;
    const int64_t *start, *num, *labels;
    float *weights, *first, *second, *slopes, *out;
    double *loss;
    int64_t steps, threads, optimizer, count; /* of Adam's steps before these */
    double lr, weight_decay, momentum;
} mk_half;

/* Where the parameters lie in a vector of all: embed [E][padded], embed_bias [E], position [L][E]; then for each block
   norm1 [2][E] (weight, bias), qkv [3 E][E], qkv_bias [3 E], out [E][E], out_bias [E], norm2 [2][E], fc1 [F][E],
   fc1_bias [F], fc2 [E][F], fc2_bias [E]; then norm [2][E], head [C][E], head_bias [C]. */
int64_t mk_encoder_size(const mk_encoder *e);

/* Gives 0, or 1 if memory ran out. */
int mk_encoder_steps(const mk_half *job);

#endif
