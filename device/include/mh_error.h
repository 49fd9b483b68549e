/* Why a device refused a message: the metric "error" of a reply of weight 0. The sentences are in
   src/midhaul/link/refusal.py, in the same order; append, never reorder. */
#ifndef MH_ERROR_H
#define MH_ERROR_H

enum mh_error {
    MH_OK = 0,
    MH_ERROR_FRAME = 1,         /* the frame isn't whole or not as docs/wire.md says */
    MH_ERROR_OP = 2,            /* this build or this model has no such op */
    MH_ERROR_SETTING = 3,       /* a setting is missing, of another type, or out of range */
    MH_ERROR_MODEL = 4,         /* no model is loaded */
    MH_ERROR_SLICE = 5,         /* the blob has no plan for the slice */
    MH_ERROR_TENSOR = 6,        /* the op takes no tensor of this name, or takes it once */
    MH_ERROR_SHAPE = 7,         /* a tensor has another shape or dtype */
    MH_ERROR_BORROWED = 8,      /* the op needs a tensor that another message overwrote and this one doesn't hold */
    MH_ERROR_ROWS = 9,          /* the rows are kept as features, so they can't be sent as they came */
    MH_ERROR_STORE_FULL = 10,   /* the rows don't fit into the store */
    MH_ERROR_STORE_ORDER = 11,  /* the sets come in the order train, test, adapt */
    MH_ERROR_FLASH = 12,        /* the flash didn't take what was written, or can't be erased there */
    MH_ERROR_LABEL = 13,        /* a label that the model has no class for */
    MH_ERROR_BLOB = 14,         /* the blob isn't a sound model */
    MH_ERROR_BLOB_SUM = 15,     /* the blob's CRC-32 is wrong */
    MH_ERROR_BLOB_ORDER = 16,   /* a part of the blob that isn't the next */
    MH_ERROR_BLOB_SIZE = 17,    /* the blob is larger than a slot */
    MH_ERROR_PACKING = 18,      /* the blob's int8 weights are packed for another kind of core */
    MH_ERROR_ARENA = 19,        /* the arena is too small for the op */
    MH_ERROR_BATCH = 20,        /* BACKWARD without a batch in flight */
    MH_ERROR_START = 21,        /* clip and proximal_mu need a blob that keeps the values before the op */
    MH_ERROR_MOMENTUM = 22,     /* momentum needs a blob that keeps velocities */
    MH_ERROR_MOMENTUM_LOST = 23, /* BACKWARD's velocities were overwritten by FIT */
    MH_ERROR_DIVERGED = 24,     /* a weight, an activation or the loss isn't finite */
    MH_ERROR_TRAINING = 25,     /* this build can't train */
    MH_NUM_ERRORS
};

#endif
