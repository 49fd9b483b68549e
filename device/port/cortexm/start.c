/* Start-up of a Cortex-M: vectors, FPU and MVE, data, a painted stack; then the device serves until its stream closes. */
#include "cortexm.h"

#define MH_PAINT 0xa5a5a5a5u
#define MH_CCR (*(volatile uint32_t *)0xe000ed14u)
#define MH_CPACR (*(volatile uint32_t *)0xe000ed88u)
#define MH_DEMCR (*(volatile uint32_t *)0xe000edfcu)
#define MH_DWT_CTRL (*(volatile uint32_t *)0xe0001000u)
#define MH_DWT_CYCCNT (*(volatile uint32_t *)0xe0001004u)

void mh_main(void);
void mh_start(void);

static void mh_fault(void)
{
    mh_port_exit(2);
}

/* Nothing enables an interrupt, so the vectors of peripherals aren't needed. */
__attribute__((section(".vectors"), used)) static const struct {
    uint8_t *stack;
    void (*entry[15])(void);
} mh_vectors = { mh_stack_high,
                 { mh_reset, mh_fault, mh_fault, mh_fault, mh_fault, mh_fault, mh_fault, mh_fault, mh_fault, mh_fault,
                   mh_fault, mh_fault, mh_fault, mh_fault, mh_fault } };

#ifdef MH_BOOT_VECTORS
/* For a machine that starts from a place where the image isn't. */
__attribute__((section(".boot_vectors"), used)) static const struct {
    uint8_t *stack;
    void (*entry)(void);
} mh_boot_vectors = { mh_stack_high, mh_reset };
#endif

void mh_start(void)
{
    volatile uint32_t *word;
    const uint32_t *from = (const uint32_t *)(const void *)mh_data_from;

    /* Below this function's own frame; the volatile local marks how deep it is. */
    volatile uint32_t here = 0;
    for (word = (volatile uint32_t *)(void *)mh_stack_low; word + 16 < &here; word++) {
        *word = MH_PAINT;
    }
    for (word = (volatile uint32_t *)(void *)mh_data_low; word < (volatile uint32_t *)(void *)mh_data_high; word++) {
        *word = *from++;
    }
    for (word = (volatile uint32_t *)(void *)mh_bss_low; word < (volatile uint32_t *)(void *)mh_bss_high; word++) {
        *word = 0;
    }
    mh_main();
    mh_port_exit(0);
}

void mh_reset(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    MH_CPACR |= 0xfu << 20;
#endif
#if defined(__ARM_FEATURE_MVE)
    MH_CCR |= 1u << 19; /* the branch cache of low-overhead loops */
#endif
#if __ARM_ARCH >= 7
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
#if __ARM_ARCH >= 7 && !defined(MH_NO_DWT)
    MH_DEMCR |= 1u << 24;
    MH_DWT_CYCCNT = 0;
    MH_DWT_CTRL |= 1u;
#endif
    mh_start();
}

uint32_t mh_cortexm_ticks(void *self)
{
    (void)self;
#if __ARM_ARCH >= 7 && !defined(MH_NO_DWT)
    return MH_DWT_CYCCNT;
#else
    return 0;
#endif
}

static uint32_t mh_cortexm_stack_peak(void *self)
{
    const uint32_t *word = (const uint32_t *)(const void *)mh_stack_low;

    (void)self;
    while (word < (const uint32_t *)(const void *)mh_stack_high && *word == MH_PAINT) {
        word++;
    }
    return (uint32_t)(mh_stack_high - (const uint8_t *)word);
}

void mh_cortexm_port(mh_port *port)
{
    port->stack_peak = mh_cortexm_stack_peak;
    port->arena = mh_arena_low;
    port->arena_bytes = (uint32_t)((uintptr_t)mh_arena_high - (uintptr_t)mh_arena_low) & ~15u;
    port->slot[0] = mh_slot0;
    port->slot[1] = mh_slot1;
    port->slot_bytes = (uint32_t)((uintptr_t)mh_slot1 - (uintptr_t)mh_slot0);
    port->store = mh_store_low;
    port->store_bytes = (uint32_t)((uintptr_t)mh_store_high - (uintptr_t)mh_store_low);
    port->key = (mh_image_config.flags & MH_CONFIG_HAS_KEY) != 0 ? mh_image_config.key : 0;
}
