/* Flash that is memory, as emulated boards have it. */
#include "cortexm.h"

static int32_t mh_memory_erase(void *self, uint8_t *at, uint32_t num)
{
    volatile uint32_t *word = (volatile uint32_t *)(void *)at;

    (void)self;
    if (((uintptr_t)at | num) % 4 != 0) {
        return -1;
    }
    for (; num > 0; num -= 4) {
        *word++ = 0xffffffffu;
    }
    return 0;
}

static int32_t mh_memory_write(void *self, uint8_t *at, const uint8_t *from, uint32_t num)
{
    (void)self;
    if (((uintptr_t)at | num) % 4 != 0) {
        return -1;
    }
    while (num-- > 0) {
        *at++ &= *from++;
    }
    return 0;
}

void mh_memory_flash(mh_port *port)
{
    port->flash_erase = mh_memory_erase;
    port->flash_write = mh_memory_write;
    if ((mh_image_config.flags & MH_CONFIG_FRESH) != 0) {
        mh_memory_erase(0, mh_slot0, (uint32_t)((uintptr_t)mh_slots_high - (uintptr_t)mh_slot0));
        mh_memory_erase(0, mh_store_low, (uint32_t)((uintptr_t)mh_store_high - (uintptr_t)mh_store_low));
    }
}
