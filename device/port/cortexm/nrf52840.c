/* The port to a Nordic nRF52840 DK: UART0 by DMA (UARTE0) on the debugger's serial line, 1 Mbaud, with flow control.

   nRF52840 Product Specification v1.7: UARTE, NVMC, RNG, CLOCK, GPIO; the DK's pins: P0.06 TXD, P0.08 RXD, P0.05 RTS,
   P0.07 CTS. Compiled and linked by the tests; no board was at hand to run it on. */
#include "cortexm.h"

#define MH_REG(at) (*(volatile uint32_t *)(at))

#define MH_CLOCK_TASKS_HFCLKSTART MH_REG(0x40000000u)
#define MH_CLOCK_EVENTS_HFCLKSTARTED MH_REG(0x40000100u)

#define MH_P0_OUTSET MH_REG(0x50000508u)
#define MH_P0_DIRSET MH_REG(0x50000518u)

#define MH_UARTE_TASKS_STARTRX MH_REG(0x40002000u)
#define MH_UARTE_TASKS_STARTTX MH_REG(0x40002008u)
#define MH_UARTE_EVENTS_ENDRX MH_REG(0x40002110u)
#define MH_UARTE_EVENTS_ENDTX MH_REG(0x40002120u)
#define MH_UARTE_EVENTS_ERROR MH_REG(0x40002124u)
#define MH_UARTE_INTENSET MH_REG(0x40002304u)
#define MH_UARTE_ERRORSRC MH_REG(0x40002480u)
#define MH_UARTE_ENABLE MH_REG(0x40002500u)
#define MH_UARTE_PSEL_RTS MH_REG(0x40002508u)
#define MH_UARTE_PSEL_TXD MH_REG(0x4000250cu)
#define MH_UARTE_PSEL_CTS MH_REG(0x40002510u)
#define MH_UARTE_PSEL_RXD MH_REG(0x40002514u)
#define MH_UARTE_BAUDRATE MH_REG(0x40002524u)
#define MH_UARTE_RXD_PTR MH_REG(0x40002534u)
#define MH_UARTE_RXD_MAXCNT MH_REG(0x40002538u)
#define MH_UARTE_TXD_PTR MH_REG(0x40002544u)
#define MH_UARTE_TXD_MAXCNT MH_REG(0x40002548u)
#define MH_UARTE_CONFIG MH_REG(0x4000256cu)

#define MH_RNG_TASKS_START MH_REG(0x4000d000u)
#define MH_RNG_TASKS_STOP MH_REG(0x4000d004u)
#define MH_RNG_EVENTS_VALRDY MH_REG(0x4000d100u)
#define MH_RNG_CONFIG MH_REG(0x4000d504u)
#define MH_RNG_VALUE MH_REG(0x4000d508u)

#define MH_NVMC_READY MH_REG(0x4001e400u)
#define MH_NVMC_CONFIG MH_REG(0x4001e504u)
#define MH_NVMC_ERASEPAGE MH_REG(0x4001e508u)

#define MH_NVIC_ENABLE0 MH_REG(0xe000e100u)
#define MH_NVIC_CLEAR0 MH_REG(0xe000e280u)
#define MH_AIRCR MH_REG(0xe000ed0cu)

enum { MH_PIN_RTS = 5, MH_PIN_TXD = 6, MH_PIN_CTS = 7, MH_PIN_RXD = 8 };
enum { MH_PAGE_BYTES = 4096, MH_CHUNK = 64, MH_UARTE_IRQ = 1u << 2 };
enum { MH_NVMC_READ = 0, MH_NVMC_WRITE = 1, MH_NVMC_ERASE = 2 };

static uint8_t mh_chunk[MH_CHUNK]; /* the DMA reads RAM only, and constants are in flash */
static uint8_t mh_byte;

/* One byte by DMA at a time: a transfer ends when its buffer is full, and nobody knows how many bytes will come. The line's
   flow control and the receiver's FIFO of 6 bytes hold what comes while the device computes. */
static int32_t mh_read(void *self, uint8_t *to, uint32_t max)
{
    (void)self;
    if (max == 0) {
        return 0;
    }
    while (MH_UARTE_EVENTS_ENDRX == 0) {
        MH_NVIC_CLEAR0 = MH_UARTE_IRQ;
        if (MH_UARTE_EVENTS_ENDRX == 0) {
            __asm__ volatile("wfi" ::: "memory");
        }
    }
    MH_UARTE_EVENTS_ENDRX = 0;
    to[0] = *(volatile uint8_t *)&mh_byte;
    if (MH_UARTE_EVENTS_ERROR != 0) { /* a byte was lost or bent: the packet's check finds it */
        MH_UARTE_EVENTS_ERROR = 0;
        MH_UARTE_ERRORSRC = MH_UARTE_ERRORSRC;
    }
    MH_UARTE_TASKS_STARTRX = 1;
    return 1;
}

static int32_t mh_write(void *self, const uint8_t *from, uint32_t num)
{
    (void)self;
    while (num > 0) {
        uint32_t now = num < MH_CHUNK ? num : MH_CHUNK, n;
        for (n = 0; n < now; n++) {
            mh_chunk[n] = *from++;
        }
        __asm__ volatile("dmb" ::: "memory");
        MH_UARTE_TXD_PTR = (uint32_t)(uintptr_t)mh_chunk;
        MH_UARTE_TXD_MAXCNT = now;
        MH_UARTE_EVENTS_ENDTX = 0;
        MH_UARTE_TASKS_STARTTX = 1;
        while (MH_UARTE_EVENTS_ENDTX == 0) {
        }
        num -= now;
    }
    return 0;
}

static uint32_t mh_random(void *self)
{
    uint32_t word = 0, n;

    (void)self;
    MH_RNG_CONFIG = 1; /* bias correction */
    MH_RNG_TASKS_START = 1;
    for (n = 0; n < 4; n++) {
        MH_RNG_EVENTS_VALRDY = 0;
        while (MH_RNG_EVENTS_VALRDY == 0) {
        }
        word = word << 8 | (MH_RNG_VALUE & 0xffu);
    }
    MH_RNG_TASKS_STOP = 1;
    return word;
}

static void mh_nvmc(uint32_t mode)
{
    MH_NVMC_CONFIG = mode;
    while ((MH_NVMC_READY & 1u) == 0) {
    }
}

static int32_t mh_erase(void *self, uint8_t *at, uint32_t num)
{
    uint32_t page = (uint32_t)(uintptr_t)at;

    (void)self;
    if (page % MH_PAGE_BYTES != 0 || num % MH_PAGE_BYTES != 0) {
        return -1;
    }
    for (; num > 0; num -= MH_PAGE_BYTES, page += MH_PAGE_BYTES) {
        mh_nvmc(MH_NVMC_ERASE);
        MH_NVMC_ERASEPAGE = page;
        mh_nvmc(MH_NVMC_READ);
    }
    return 0;
}

static int32_t mh_program(void *self, uint8_t *at, const uint8_t *from, uint32_t num)
{
    volatile uint32_t *word = (volatile uint32_t *)(void *)at;

    (void)self;
    if (((uintptr_t)at | num) % 4 != 0) {
        return -1;
    }
    for (; num > 0; num -= 4, from += 4) {
        uint32_t value = from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
        mh_nvmc(MH_NVMC_WRITE);
        *word = value;
        mh_nvmc(MH_NVMC_READ);
        if ((*word & ~value) != 0) {
            return -1;
        }
        word++;
    }
    return 0;
}

void mh_port_open(mh_port *port)
{
    __asm__ volatile("cpsid i" ::: "memory"); /* interrupts only end a wait; none is ever taken */
    MH_CLOCK_EVENTS_HFCLKSTARTED = 0; /* the UART's baud rate needs the crystal */
    MH_CLOCK_TASKS_HFCLKSTART = 1;
    while (MH_CLOCK_EVENTS_HFCLKSTARTED == 0) {
    }
    MH_P0_OUTSET = 1u << MH_PIN_TXD | 1u << MH_PIN_RTS;
    MH_P0_DIRSET = 1u << MH_PIN_TXD | 1u << MH_PIN_RTS;
    MH_REG(0x50000700u + 4u * MH_PIN_RXD) = 0; /* PIN_CNF: input, connected */
    MH_REG(0x50000700u + 4u * MH_PIN_CTS) = 0;
    MH_UARTE_PSEL_RTS = MH_PIN_RTS;
    MH_UARTE_PSEL_TXD = MH_PIN_TXD;
    MH_UARTE_PSEL_CTS = MH_PIN_CTS;
    MH_UARTE_PSEL_RXD = MH_PIN_RXD;
    MH_UARTE_BAUDRATE = 0x10000000u; /* 1 Mbaud */
    MH_UARTE_CONFIG = 1;             /* flow control, no parity, one stop bit */
    MH_UARTE_ENABLE = 8;
    MH_UARTE_INTENSET = 1u << 4; /* ENDRX */
    MH_NVIC_ENABLE0 = MH_UARTE_IRQ;
    MH_UARTE_RXD_PTR = (uint32_t)(uintptr_t)&mh_byte;
    MH_UARTE_RXD_MAXCNT = 1;
    MH_UARTE_EVENTS_ENDRX = 0;
    MH_UARTE_TASKS_STARTRX = 1;
    port->read = mh_read;
    port->write = mh_write;
    port->ticks = mh_cortexm_ticks;
    port->random = mh_random;
    port->flash_erase = mh_erase;
    port->flash_write = mh_program;
}

/* A board that can't go on starts again. */
void mh_port_exit(int32_t status)
{
    (void)status;
    __asm__ volatile("dsb" ::: "memory");
    MH_AIRCR = 0x05fa0004u;
    for (;;) {
        __asm__ volatile("wfi");
    }
}
