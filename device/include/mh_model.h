/* A model as the blob has it (mh_blob.h), run in place: its check, forward, backward and SGD step, one example at a time.

   mh_model_check looks at every number of a blob that says where or how much. After it nothing here reads outside of the
   blob and the arena or writes outside of the arena, whatever the blob computes.

   With MH_INFER_ONLY nothing that trains is compiled. */
#ifndef MH_MODEL_H
#define MH_MODEL_H

#include <stdint.h>

#include "mh_blob.h"
#include "mh_error.h"

#ifndef MH_MAX_PARAMS
#define MH_MAX_PARAMS 256 /* trained tensors; each costs two bits of RAM */
#endif

typedef struct {
    const uint8_t *blob;
    const mh_blob *head;
    const mh_value *values;
    const mh_layer *layers;
    const mh_param *params;
    const mh_plan *plans;
    uint8_t *arena;
} mh_model;

/* What an SGD step is told; see mh_sgd_f32. */
typedef struct {
    float lr, momentum, decay, mu;
} mh_sgd;

/* The numbers of a value. */
uint32_t mh_value_elements(const mh_value *v);

/* MH_OK, or why these bytes (4-byte aligned) are no sound model for this build and an arena of arena_bytes. */
enum mh_error mh_model_check(const uint8_t *blob, uint32_t bytes, uint32_t arena_bytes);

/* Of a blob that was checked for this arena. */
void mh_model_open(mh_model *m, const uint8_t *blob, uint8_t *arena);

/* Puts the trained tensors to their initial values and the velocities to 0. */
void mh_model_reset(const mh_model *m);
void mh_model_zero_velocities(const mh_model *m);

/* The plan of a kind (or, with kind < 0, any plan) for a slice, or NULL. Any slice does where name is NULL. */
const mh_plan *mh_model_plan(const mh_model *m, int kind, const char *name, uint32_t name_bytes);
/* uint8_t [num_params]: what the plan trains, and what its slice holds. */
const uint8_t *mh_model_trained(const mh_model *m, const mh_plan *p);
const uint8_t *mh_model_sent(const mh_model *m, const mh_plan *p);

/* The value behind the last layer, and where the plan has a value in the arena. */
uint16_t mh_model_output(const mh_model *m);
void *mh_model_value(const mh_model *m, const mh_plan *p, uint16_t value);

/* Whether it has one: the input of a network that begins in int8 doesn't, as its rows are quantised as they come. */
int mh_model_places(const mh_model *m, const mh_plan *p, uint16_t value);

float *mh_model_weight(const mh_model *m, uint32_t param);
float *mh_model_velocity(const mh_model *m, uint32_t param); /* NULL if none is kept; so the next */
float *mh_model_start(const mh_model *m, uint32_t param);

/* From the stored value (or the input, in a STORE plan), which lies in the arena, to the last. */
void mh_model_forward(const mh_model *m, const mh_plan *p);

#ifndef MH_INFER_ONLY
/* Where the gradient at the last value is to be written before mh_model_backward. */
float *mh_model_gradient(const mh_model *m, const mh_plan *p);
void mh_model_zero_sums(const mh_model *m, const mh_plan *p);
/* Adds one example's gradients to the sums; its forward must have run just before. */
void mh_model_backward(const mh_model *m, const mh_plan *p);
/* One step with the sums. Velocities are used where momentum isn't 0, starting values where mu isn't. */
void mh_model_step(const mh_model *m, const mh_plan *p, const mh_sgd *how);
/* The scratch of the loss: [2 * num_classes]. */
float *mh_model_scratch(const mh_model *m, const mh_plan *p);
#endif

#endif
