/* What the ports to Cortex-M share: start-up, the image's settings, memory that the linker laid out. */
#ifndef MH_CORTEXM_H
#define MH_CORTEXM_H

#include "mh_port.h"

#define MH_CONFIG_MAGIC 0x3143484du /* "MHC1" */
#define MH_CONFIG_HAS_KEY 1u
#define MH_CONFIG_FRESH 2u /* an emulated device whose flash is new: it is erased at the start */
#define MH_CONFIG_ELAPSED 4u /* the emulator counts instructions and SYS_ELAPSED gives them */

/* Written into the finished image for each device, by toolchain.Image.provisioned. */
typedef struct {
    uint32_t magic;
    uint32_t flags;
    uint32_t ticks_at; /* address of a counter that counts up, or 0: the port's own way */
    uint32_t seed;     /* of `random` where the port has nothing better */
    uint8_t key[32];
} mh_config;

extern const mh_config mh_image_config;

/* From the linker script. */
extern uint8_t mh_stack_low[], mh_stack_high[], mh_data_low[], mh_data_high[], mh_data_from[], mh_bss_low[], mh_bss_high[];
extern uint8_t mh_arena_low[], mh_arena_high[], mh_slot0[], mh_slot1[], mh_slots_high[], mh_store_low[],
    mh_store_high[];

void mh_reset(void);
/* Fills in all that doesn't depend on the port: arena, slots, store, key, stack_peak. */
void mh_cortexm_port(mh_port *port);
uint32_t mh_cortexm_ticks(void *self); /* DWT's cycle counter where the core has one */
/* Flash that is memory: what an emulator has. */
void mh_memory_flash(mh_port *port);

/* A port defines these. */
void mh_port_open(mh_port *port);
void mh_port_exit(int32_t status); /* doesn't return */

#endif
