/* The model blob: one flat file that the runtime reads in place, from flash.

   Everything is little-endian; every offset is in bytes from the start of the blob and is a multiple of 4. The twin that
   writes it is src/midhaul/devices/blob.py; docs/blob.md describes it.

   The arena of a plan begins with what stays between ops (trained weights, then velocities, then starting values), at the
   same offsets in every plan of a blob; behind it lie the buffers of the op. */
#ifndef MH_BLOB_H
#define MH_BLOB_H

#include <stdint.h>

#define MH_BLOB_MAGIC 0x3142484du /* "MHB1" */
#define MH_BLOB_VERSION 1
#define MH_NONE16 0xffffu
#define MH_NONE32 0xffffffffu

enum mh_dtype { MH_F32 = 0, MH_S8 = 1 };
enum mh_layout { MH_CHW = 0, MH_HWC = 1 }; /* float values are CHW, as torch has them; int8 values are HWC */

enum mh_kind {
    MH_DENSE = 1,      /* out.c numbers from all numbers of in0 */
    MH_CONV = 2,       /* groups = 1 */
    MH_DEPTHWISE = 3,  /* groups = in0.c; out.c may be a multiple of it */
    MH_MAX_POOL = 4,   /* padded taps don't count */
    MH_AVERAGE_POOL = 5, /* mean over the taps inside; a global pool has the kernel of the whole map */
    MH_CLAMP = 6,      /* ReLU, ReLU6: into [low, high] */
    MH_ADD = 7,        /* in0 + in1, then clamp */
    MH_GROUP_NORM = 8, /* over out.c / groups channels each */
    MH_RESHAPE = 9,    /* the same numbers under another shape (flatten); never copies, f32 only */
    MH_QUANTISE = 10,  /* f32 CHW -> s8 HWC */
    MH_DEQUANTISE = 11 /* s8 HWC -> f32 CHW */
};

/* Bits of mh_layer.flags */
enum { MH_HAS_CLAMP = 1 };

/* How the weights of an s8 layer are packed; mh_s8.h says what each looks like. */
enum mh_packing { MH_PACK_PLAIN = 0, MH_PACK_DSP = 1, MH_PACK_MVE = 2 };

typedef struct {
    uint32_t magic;
    uint16_t version;
    uint16_t header_bytes; /* sizeof(mh_blob) */
    uint32_t total_bytes;  /* a multiple of 4 */
    uint32_t crc32;        /* of the total_bytes bytes with this field as 0 */
    uint16_t num_values;
    uint16_t num_layers;
    uint16_t num_params;   /* trained tensors only */
    uint16_t num_plans;
    uint32_t values_at;
    uint32_t layers_at;
    uint32_t params_at;
    uint32_t plans_at;
    uint16_t stored_value; /* the value that the store keeps of a row: 0 is the input, another is a feature at a cut */
    uint16_t num_classes;  /* numbers of the last value, or 0 where the last value is the activation at a cut */
    uint16_t packing;      /* enum mh_packing */
    uint16_t zero;
    uint32_t persist_bytes; /* of the arena: what stays between ops */
    uint32_t arena_bytes;   /* the largest plan's, persist_bytes included */
    uint32_t model_id;      /* CRC-32 of the model's text form: names, shapes, slices */
    uint32_t zero2;
} mh_blob;                  /* 64 bytes */

typedef struct {
    uint8_t dtype;
    uint8_t layout;
    uint16_t c, h, w; /* every value has three axes; a vector is [c, 1, 1], a signal [c, 1, w] */
    float scale;      /* of s8: real = scale * (stored - zero_point) */
    int32_t zero_point;
} mh_value; /* 16 bytes */

typedef struct {
    uint8_t kind;
    uint8_t flags;
    uint16_t in0, in1, out; /* values; in1 is MH_NONE16 but for MH_ADD */
    uint8_t kh, kw, sh, sw;
    uint8_t pt, pl, pb, pr; /* padding: top, left, bottom, right */
    uint8_t dh, dw;         /* dilation */
    uint16_t groups;
    float low, high;        /* of f32 layers with MH_HAS_CLAMP */
    int8_t qlow, qhigh;     /* of s8 layers, always set: the clamp in stored numbers */
    uint16_t rank;          /* of LoRA on a dense or 1x1 conv layer; 0 if it has none */
    float eps;              /* of MH_GROUP_NORM */
    float lora_scale;
    /* f32: a tensor is either trained, then its param number, or frozen, then its offset; the other is none. */
    uint16_t weight, bias, lora_a, lora_b; /* params */
    uint32_t weight_at, bias_at, lora_a_at, lora_b_at; /* frozen data; for s8: weight_at the packed weights */
    uint32_t requant_at;    /* s8: see mh_s8.h */
    uint32_t zero;
} mh_layer; /* 72 bytes */

typedef struct {
    uint32_t name_id; /* CRC-32 of the tensor's name, as in frames */
    uint32_t elements;
    uint8_t ndim;
    uint8_t zero[3];
    uint16_t shape[4]; /* as torch has it; unused ones are 0 */
    uint32_t initial_at; /* f32 data in torch's order, in the blob */
    uint32_t weight_offset;   /* in the arena; persistent */
    uint32_t velocity_offset; /* persistent; MH_NONE32 if no plan keeps momentum */
    uint32_t start_offset;    /* persistent; MH_NONE32 if nothing needs the values before the op */
} mh_param; /* 36 bytes */

enum mh_plan_kind {
    MH_PLAN_INFER = 0,    /* from the stored value (or from the input) to the last value */
    MH_PLAN_TRAIN = 1,    /* FIT and ADAPT: a loss at the end */
    MH_PLAN_BACKWARD = 2, /* BACKWARD: the gradient at the end comes over the link */
    MH_PLAN_STORE = 3     /* PUSH: from the input to the stored value; only where that isn't the input */
};

/* Bits of a layer's byte in mh_plan.steps_at */
enum { MH_STEP_FORWARD = 1, MH_STEP_GRAD_INPUT0 = 2, MH_STEP_GRAD_INPUT1 = 4, MH_STEP_GRAD_PARAMS = 8,
       MH_STEP_ADDS0 = 16, MH_STEP_ADDS1 = 32 /* the input's gradient is added to what is there, not written */ };

typedef struct {
    uint8_t kind;
    uint8_t slice_bytes;   /* length of the slice's name */
    uint16_t zero;
    uint32_t slice_at;     /* its name, not terminated: "whole", "head", "front", ... */
    uint32_t trained_at;   /* uint8_t [num_params], 1 if this plan trains it */
    uint32_t sent_at;      /* uint8_t [num_params], 1 if it is in the slice */
    uint32_t arena_bytes;  /* persist_bytes included */
    uint32_t steps_at;     /* uint8_t [num_layers]; forward runs layers in order, backward in reverse */
    uint32_t values_at;    /* uint32_t [num_values]: arena offset of each value, MH_NONE32 if it isn't made. A STORE plan
                              whose first layer is MH_QUANTISE has no input and no step there: numbers are quantised as
                              they come */
    uint32_t grads_at;     /* uint32_t [num_values]: arena offset of each value's gradient, or MH_NONE32 */
    uint32_t sums_at;      /* uint32_t [num_params]: arena offset of the gradient sums, or MH_NONE32 */
    uint32_t scratch_offset;
    uint32_t scratch_bytes;
} mh_plan; /* 44 bytes */

#endif
