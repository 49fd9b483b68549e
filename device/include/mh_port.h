/* What a device needs of the world around it. A port fills one of these in; the runtime calls nothing else.

   Flash is memory that can be read in place. Erased bytes are 0xff and a write only clears bits, so that the runtime can
   commit with one last word. Addresses given to flash_erase and flash_write lie in a slot or in the store; num is a
   multiple of 4. A slot and the store begin on a boundary of what the port erases at once, and are multiples of it. */
#ifndef MH_PORT_H
#define MH_PORT_H

#include <stdint.h>

typedef struct mh_port {
    void *self;                                                      /* handed to each function */
    int32_t (*read)(void *self, uint8_t *to, uint32_t max);          /* waits for >= 1 byte, gives how many; 0: closed; < 0: error */
    int32_t (*write)(void *self, const uint8_t *from, uint32_t num); /* all of it; < 0: error */
    uint32_t (*ticks)(void *self);                                   /* cycles or instructions; 0 where none can be counted */
    uint32_t (*random)(void *self);                                  /* for session numbers */
    int32_t (*flash_erase)(void *self, uint8_t *at, uint32_t num);   /* of slots and store; 0xff after it; < 0: error */
    int32_t (*flash_write)(void *self, uint8_t *at, const uint8_t *from, uint32_t num); /* 4-byte aligned; only clears bits; < 0: error */
    uint32_t (*stack_peak)(void *self);                              /* bytes since the start; 0 where unknown */
    uint8_t *arena;                                                  /* 16-byte aligned */
    uint32_t arena_bytes;
    uint8_t *slot[2];                                                /* flash: two places for a blob */
    uint32_t slot_bytes;
    uint8_t *store;                                                  /* flash (or RAM): the device's own rows */
    uint32_t store_bytes;
    const uint8_t *key;                                              /* 32 bytes, or NULL: unsealed */
} mh_port;

#endif
