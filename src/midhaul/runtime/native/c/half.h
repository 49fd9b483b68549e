#ifndef MK_HALF_H
#define MK_HALF_H

#include "encoder.h"

#include <pthread.h>

/* Places of parameters: of all, and of a block from its start on. */
typedef struct {
    int64_t embed, embed_bias, position, blocks, norm, head, head_bias, size;
    int64_t norm1, qkv, qkv_bias, out, out_bias, norm2, fc1, fc1_bias, fc2, fc2_bias, block;
} mk_encoder_places;

/* Places in a thread's memory: what forward keeps for backward, of a block from its start on, and what nothing keeps. */
typedef struct {
    int64_t x, blocks, last, last_moments, total, ld; /* ld: L rounded up */
    int64_t in, moments1, normed1, qkv, share, mixed, mid, moments2, normed2, active, bend, block;
    int64_t turned, slope_qkv, slope_turned, slope_share, slope_inner, slope, side, pooled, logits;
} mk_encoder_room;

typedef struct {
    const mk_half *job;
    const mk_encoder *e;
    mk_encoder_places at;
    mk_encoder_room in;
    float *turned;    /* the weights of the products, transposed: each where it lies in `weights` */
    float *gradients; /* [parts][size] */
    double *losses;   /* [rows of a step] */
    int64_t parts, next, threads, failed;
    pthread_mutex_t lock;
    pthread_cond_t open;
    int64_t waiting, turn;
} mk_team;

typedef struct {
    mk_team *of;
    int64_t number;
    float *memory;
    const float **a;
    float **c;
    int64_t *offsets;
} mk_worker;

mk_encoder_places mk_places_of(const mk_encoder *e);
mk_encoder_room mk_room_of(const mk_encoder *e);

/* Takes a row of x to its logits, which stay in the worker's memory. */
void mk_encoder_forward(mk_worker *w, const float *x);

/* Takes that row's loss, `scale` times, back to the gradient and to the row; gives the loss. */
double mk_encoder_backward(mk_worker *w, int64_t label, float scale, float *gradient, float *slopes);

#endif
