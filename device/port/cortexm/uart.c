/* The port to a CMSDK UART (Arm DDI 0479, section 4.3), as QEMU's MPS2 and MPS3 boards have one. For tests of the protocol
   over a real serial line: bytes come one at a time and nothing says when the other side went away. */
#include "cortexm.h"

#define MH_UART(offset) (*(volatile uint32_t *)(MH_UART_AT + (offset)))
#define MH_UART_DATA MH_UART(0x00u)
#define MH_UART_STATE MH_UART(0x04u)
#define MH_UART_CTRL MH_UART(0x08u)
#define MH_UART_INTCLEAR MH_UART(0x0cu)
#define MH_UART_BAUDDIV MH_UART(0x10u)
#define MH_SYST_CSR (*(volatile uint32_t *)0xe000e010u)
#define MH_SYST_RVR (*(volatile uint32_t *)0xe000e014u)
#define MH_SYST_CVR (*(volatile uint32_t *)0xe000e018u)
#define MH_NVIC_ENABLE(n) (*(volatile uint32_t *)(0xe000e100u + 4u * (n)))
#define MH_NVIC_CLEAR(n) (*(volatile uint32_t *)(0xe000e280u + 4u * (n)))

enum { MH_TX_FULL = 1, MH_RX_FULL = 2, MH_NUM_NVIC = 3 };

static uint32_t mh_seed;

static int32_t mh_read(void *self, uint8_t *to, uint32_t max)
{
    uint32_t num = 0, n;

    (void)self;
    while (max > 0 && (MH_UART_STATE & MH_RX_FULL) == 0) {
        MH_UART_INTCLEAR = 0xfu;
        for (n = 0; n < MH_NUM_NVIC; n++) {
            MH_NVIC_CLEAR(n) = ~0u;
        }
        /* A byte that came in between made its interrupt pending again, and then this doesn't wait. */
        if ((MH_UART_STATE & MH_RX_FULL) == 0) {
            __asm__ volatile("wfi" ::: "memory");
        }
    }
    while (num < max && (MH_UART_STATE & MH_RX_FULL) != 0) {
        to[num++] = (uint8_t)MH_UART_DATA;
        mh_seed = mh_seed * 0x01000193u + to[num - 1] + 0x9e3779b9u;
    }
    return (int32_t)num;
}

static int32_t mh_write(void *self, const uint8_t *from, uint32_t num)
{
    (void)self;
    while (num-- > 0) {
        while ((MH_UART_STATE & MH_TX_FULL) != 0) {
        }
        MH_UART_DATA = *from++;
    }
    return 0;
}

static uint32_t mh_ticks(void *self)
{
    return mh_image_config.ticks_at != 0 ? *(volatile uint32_t *)(uintptr_t)mh_image_config.ticks_at : mh_cortexm_ticks(self);
}

/* The emulated boards have no source of noise: a seed written into the image for each start, stirred by what came in. */
static uint32_t mh_random(void *self)
{
    (void)self;
    mh_seed = mh_seed * 0x0019660du + 0x3c6ef35fu;
    return mh_seed ^ mh_seed >> 15;
}

void mh_port_open(mh_port *port)
{
    uint32_t n;

    __asm__ volatile("cpsid i" ::: "memory"); /* interrupts only end a wait; none is ever taken */
    MH_UART_BAUDDIV = 16;
    MH_UART_CTRL = 0xbu; /* send, receive, interrupt on receive */
    for (n = 0; n < MH_NUM_NVIC; n++) {
        MH_NVIC_ENABLE(n) = ~0u;
    }
    /* QEMU looks at its socket again only when some event wakes it, and enabling the receiver is none: a timer's start is. */
    MH_SYST_RVR = 0xffffffu;
    MH_SYST_CVR = 0;
    MH_SYST_CSR = 5;
    mh_seed = mh_image_config.seed;
    port->read = mh_read;
    port->write = mh_write;
    port->ticks = mh_ticks;
    port->random = mh_random;
    mh_memory_flash(port);
}

void mh_port_exit(int32_t status)
{
    (void)status;
    for (;;) {
        __asm__ volatile("wfi");
    }
}
