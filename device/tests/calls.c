/* Calls int8 kernels on an emulated Cortex-M55 (QEMU's mps3-an547): a list of calls lies in memory, put there by the
   emulator's loader; it goes back with all results and ticks through semihosting. tests/parity/helium.py is the other end. */
#include "mh_s8.h"

#define CALLS 0x72000000u
#define TICKS (*(volatile uint32_t *)0x59302018u)
#define CPACR (*(volatile uint32_t *)0xe000ed88u)
#define FPCCR (*(volatile uint32_t *)0xe000ef34u)

typedef uint32_t (*function)(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t);
typedef struct {
    uint32_t function, argument[8], result, ticks, zero;
} call;
typedef struct {
    uint32_t num, bytes;
    call calls[1];
} list;

/* 8 n instructions, to learn what a tick is worth */
static uint32_t nops(uint32_t n) {
    __asm__ volatile("1:\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tsubs %0, #1\n\tbne 1b" : "+r"(n) : : "cc");
    return n;
}

static const function functions[] = {
    (function)nops, (function)mh_packing, (function)mh_dense_s8, (function)mh_conv_s8, (function)mh_depthwise_s8,
    (function)mh_max_pool_s8, (function)mh_average_pool_s8, (function)mh_add_s8, (function)mh_dense_sizes_s8,
    (function)mh_conv_sizes_s8, (function)mh_depthwise_sizes_s8,
};

static uint32_t semihost(uint32_t operation, const void *block) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory", "cc");
    return r0;
}

void mh_calls_start(void);
void mh_calls_start(void) {
    static const char name[] = "calls.out";
    list *l = (list *)CALLS;
    CPACR |= 0xfu << 20;
    __asm__ volatile("dsb\n\tisb");
    for (uint32_t i = 0; i < l->num; i++) {
        call *c = l->calls + i;
        const uint32_t *a = c->argument;
        uint32_t start = TICKS;
        c->result = functions[c->function](a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
        c->ticks = TICKS - start;
    }
    uint32_t opened[3] = {(uint32_t)name, 5, sizeof name - 1};
    uint32_t written[3] = {semihost(1, opened), CALLS, l->bytes};
    uint32_t reason[2] = {0x20026u, semihost(5, written)};
    semihost(0x20, reason);
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) static const uint32_t stack = 0x71010000u;
__attribute__((section(".vectors2"), used)) static void (*const reset)(void) = mh_calls_start;
