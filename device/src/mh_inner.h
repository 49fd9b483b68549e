/* What the parts of the device share; nothing outside of device/src includes it. */
#ifndef MH_INNER_H
#define MH_INNER_H

#include "mh_code.h"
#include "mh_device.h"
#include "mh_frame.h"
#include "mh_rng.h"

#define MH_MAX_ROWS 65535u /* of a set: an order of them is kept in 16 bits each */
#define MH_FLASH_PAGE 4096u  /* the most that a port erases at once */
#define MH_NO_REPLY (-1)   /* of an op: the message was broken on the way, so it gets no reply */

/* CRC-32 of the names of metrics and tensors, as they are in frames. */
#define MH_ID_ROWS 0x0a8bf4a1u
#define MH_ID_LOSS 0xde211109u
#define MH_ID_CORRECT 0xcb106bbbu
#define MH_ID_ERROR 0x5dddbc71u
#define MH_ID_PROTOCOL 0xc8c0bc4cu
#define MH_ID_MODEL_ID 0x7975b7e7u
#define MH_ID_ARENA_BYTES 0x7c569273u
#define MH_ID_SLOT_BYTES 0xdf2c6c83u
#define MH_ID_STORE_BYTES 0xcda715d7u
#define MH_ID_ROWS_TRAIN 0x8e658805u
#define MH_ID_ROWS_TEST 0xd696252au
#define MH_ID_ROWS_ADAPT 0x3575c8d6u
#define MH_ID_NUM_PARAMS 0x36ef594bu
#define MH_ID_PACKING 0xefb7ec48u
#define MH_ID_BOOTS 0x8741240cu
#define MH_ID_TICKS 0x89caee08u
#define MH_ID_ARENA_PEAK 0xba36ba88u
#define MH_ID_STACK_PEAK 0xae71de8bu
#define MH_ID_STORE_USED 0x9bfecdd6u
#define MH_ID_FRAMES_REFUSED 0x48e23f83u
#define MH_ID_H 0x916b06e7u
#define MH_ID_Y 0xfbdb2615u
#define MH_ID_X 0x8cdc1683u
#define MH_ID_G 0x01d41b76u
#define MH_ID_LOGITS 0xb63e2d7fu
#define MH_ID_BLOB 0xb07fa5ccu
#define MH_ID_UPDATE 0x98253578u

enum mh_loss { MH_CROSS_ENTROPY = 0, MH_MSE = 1 };
enum mh_what { MH_WHAT_NONE = 0, MH_WHAT_EXAMPLES, MH_WHAT_TEST, MH_WHAT_H, MH_WHAT_HY, MH_WHAT_BLOB, MH_WHAT_MOMENTUM };

/* A message: its frame as it is read, and its settings, with what ops.py takes where one is missing. */
typedef struct {
    mh_reader in;
    uint8_t op;
    uint32_t round, device;
    uint64_t given; /* a bit for each setting that came */
    mh_sgd sgd;
    float temperature, soft_weight, clip, scale;
    double share;
    int32_t code, stream, batch, epochs, steps, step, epoch, total, seed_low, seed_high;
    uint8_t loss, what;
    int8_t rows; /* enum mh_set, or -1 if it didn't come */
    uint8_t train_bytes, send_bytes;
    char train[MH_FRAME_TEXT], send[MH_FRAME_TEXT];
} mh_request;

typedef struct {
    uint32_t id;
    double value;
} mh_metric;

/* mh_slots.c */
enum mh_error mh_flash_put(const mh_port *port, uint8_t *at, const uint8_t *from, uint32_t num);
void mh_slots_init(mh_slots *s, const mh_port *port);
const uint8_t *mh_slots_blob(const mh_slots *s); /* the one in use, or NULL */
enum mh_error mh_slots_begin(mh_slots *s, uint32_t total);
enum mh_error mh_slots_put(mh_slots *s, uint32_t at, const uint8_t *from, uint32_t num);
enum mh_error mh_slots_commit(mh_slots *s);

/* mh_store.c */
void mh_store_init(mh_store *s, const mh_port *port, uint32_t value_bytes);
uint32_t mh_store_used(const mh_store *s);
const uint8_t *mh_store_row(const mh_store *s, int set, uint32_t row);
int32_t mh_store_label(const mh_store *s, int set, uint32_t row);
enum mh_error mh_store_begin(mh_store *s, int set, uint8_t *spare, uint32_t room); /* spare: a page at most */
enum mh_error mh_store_fits(const mh_store *s, int set, uint32_t num);
enum mh_error mh_store_put(mh_store *s, int set, uint32_t row, uint32_t at, const void *from, uint32_t num);
enum mh_error mh_store_put_label(mh_store *s, int set, uint32_t row, int32_t label);

/* mh_device.c: what each op is made of. Those that give an int give 0, an enum mh_error, or MH_NO_REPLY. */
void mh_device_open(mh_device *d, const uint8_t *blob); /* begins anew with a checked blob */
int mh_take_param(mh_device *d, mh_request *q, const mh_tensor *t); /* MH_ERROR_TENSOR if it is none */
int mh_take_params(mh_device *d, mh_request *q); /* all that is left of the message, and its end */
int mh_finish(mh_device *d, mh_request *q);      /* the end of the message: nothing may be kept before it gave 0 */
int mh_has_all(const mh_device *d); /* MH_ERROR_BORROWED if a parameter is neither the device's nor this message's */
int mh_begin(mh_device *d, const mh_request *q, mh_writer *w, uint32_t num_tensors, uint32_t tensor_bytes,
             uint32_t num_metrics, double weight);
int mh_end(mh_writer *w, const mh_metric *metrics, uint32_t num);
int mh_answer(mh_device *d, const mh_request *q, const mh_metric *metrics, uint32_t num, double weight); /* no tensors */
int mh_param_is_finite(const mh_device *d, uint32_t param);
/* The bytes of the parameters that `flags` names, their heads included; and those parameters. */
uint32_t mh_params_bytes(const mh_device *d, const uint8_t *flags, uint32_t *num);
void mh_put_params(mh_device *d, mh_writer *w, const uint8_t *flags, int velocities);
/* The shape of num rows of a value as it travels: [num, c], [num, c, w] or [num, c, h, w]. Gives the dimensions. */
uint8_t mh_shape_of(const mh_value *v, uint32_t num, uint32_t shape[4]);
uint32_t mh_rows_bytes(const mh_value *v, uint32_t num); /* of such a tensor, its head included */
/* Puts a row into its place in a plan's arena. */
void mh_put_row(mh_device *d, const mh_plan *p, int set, uint32_t row);
int32_t mh_label(const mh_device *d, int set, uint32_t row);
/* Runs a plan, and counts its ticks. */
void mh_run(mh_device *d, const mh_plan *p);
/* The part of the arena behind a plan, and behind what is owed: its start, and the bytes. */
uint8_t *mh_behind(const mh_device *d, uint32_t plan_bytes, uint32_t *num);
int mh_score(mh_device *d, mh_request *q, int set); /* EVALUATE's answer */
void mh_borrow(mh_device *d, uint32_t param);
void mh_own(mh_device *d, uint32_t param);
/* uint8_t [num_params]: what a slice sends; NULL for "none". MH_ERROR_SLICE if no plan is for it. */
int mh_sent(const mh_device *d, const char *name, uint32_t name_bytes, const uint8_t **sent);

/* mh_ops.c */
int mh_op_hello(mh_device *d, mh_request *q);
int mh_op_load(mh_device *d, mh_request *q);
int mh_op_read(mh_device *d, mh_request *q);
int mh_op_forward(mh_device *d, mh_request *q);
int mh_op_evaluate(mh_device *d, mh_request *q);
int mh_op_predict(mh_device *d, mh_request *q);
int mh_op_push(mh_device *d, mh_request *q);
int mh_op_stats(mh_device *d, mh_request *q);
void mh_paint(mh_device *d);
/* The order of the train set that a batch was taken from, behind a plan; NULL where the rows were taken as they lie. */
int mh_batch_order(const mh_device *d, const mh_batch *b, const mh_plan *p, uint16_t **order);

/* mh_update.c: updates that travel coded. */
/* Takes the settings of a coded reply: MH_OK with c filled, or why not. */
int mh_coded(const mh_device *d, const mh_request *q, mh_code *c);
/* Keeps room for what a slice owes, none of it yet unless the same slice owed before. NULL: owes nothing from now on. */
int mh_owe(mh_device *d, const uint8_t *sent);
/* Takes the coded tensor t of a message as a difference to what the slice was last sent. */
int mh_take_update(mh_device *d, mh_request *q, const mh_tensor *t, const mh_plan *p, const uint8_t *sent);
/* Answers with what a slice learned, coded; its weights are gone then. */
int mh_answer_update(mh_device *d, const mh_request *q, const mh_code *c, const uint8_t *sent, const mh_metric *metrics,
                     uint32_t num, double weight);

/* mh_fit.c */
int mh_op_fit(mh_device *d, mh_request *q);
int mh_op_adapt(mh_device *d, mh_request *q);
int mh_op_backward(mh_device *d, mh_request *q);

#endif
