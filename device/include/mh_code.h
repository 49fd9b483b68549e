/* An update as coded bytes, and back: the twin of src/midhaul/link/update.py, less its factors and its entropy coder.

   The numbers of an update lie in the places of the weights that travel, one part a tensor. Coding them takes no memory:
   the code of each number is put in the number's own place, so that they are gone when the bytes are written. What the
   coder took is put into `owed`, where one is kept. Bytes, sums and roundings are those of the twin, to the bit. */
#ifndef MH_CODE_H
#define MH_CODE_H

#include <stdint.h>

/* Numbers of update._VALUES and updates._SELECT. */
enum mh_code_value { MH_CODE_PLAIN = 0, MH_CODE_QUANTISE = 1, MH_CODE_QSGD = 2, MH_CODE_SIGN = 3 };
enum mh_code_select { MH_CODE_ALL = 0, MH_CODE_TOPK = 1, MH_CODE_RANDK = 2 };

#define MH_CODE_MAX_LEVELS 4096
#define MH_CODE_MAX_LOW 24 /* bits of a gap */
#define MH_CODE_HEAD 7     /* the first byte, coder, way of the places, K */

/* How to code: the setting `code` taken apart, and `share`, and the stream that is drawn from. */
typedef struct {
    uint8_t value, select; /* of the enums */
    uint8_t is_delta, feeds_back;
    uint16_t level; /* bits, or levels */
    double share;
    uint64_t seed;
    uint32_t round, device, use;
} mh_code;

/* The numbers, part by part: at(self, part, &num) gives [num] numbers, or NULL and 0 where that part has none.
   owed: [all of them], or NULL. */
typedef struct {
    float *(*at)(const void *self, uint32_t part, uint32_t *num);
    const void *self;
    uint32_t parts;
    float *owed;
} mh_numbers;

/* What mh_code_make found out, for mh_code_write. */
typedef struct {
    uint32_t num, kept; /* N, and K that travel */
    uint8_t value, how, head_bytes;
    uint8_t head[12];
    uint64_t seed;  /* of places that are drawn */
    uint32_t bytes; /* that mh_code_write gives */
} mh_made;

/* Takes the setting `code` apart: 0, or -1 for one that a device can't do. */
int mh_code_read(mh_code *c, int32_t setting);

/* Codes the numbers in their places: 0, or -1 if one, or their norm, isn't finite. There is at least one number. */
int mh_code_make(const mh_code *c, const mh_numbers *n, mh_made *made);

/* Gives the bytes, in pieces of at most 32. */
typedef int (*mh_code_sink)(void *to, const void *from, uint32_t num);
int mh_code_write(const mh_numbers *n, const mh_made *made, mh_code_sink sink, void *to);

/* Adds an update to the numbers. Bytes come from `source`, which gives 0 for num bytes that are there, in the order they
   have; num_bytes is how many there are in all. places: [room], for the places of those that travel; of plain numbers,
   quantised ones and signs that all travel it needs none. 0; -1 for bytes that aren't the whole and sound code of so many
   numbers, whereupon some numbers may have moved; -2 where `room` is too small. */
typedef int (*mh_code_source)(void *from, void *to, uint32_t num);
int mh_code_add(const mh_numbers *n, uint32_t num_bytes, uint32_t *places, uint32_t room, mh_code_source source,
                void *from);

#endif
