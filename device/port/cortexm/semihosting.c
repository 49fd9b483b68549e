/* The port to an emulator: bytes over semihosting, the same under QEMU and under Unicorn.

   "Semihosting for AArch32 and AArch64", Arm IHI 0071: BKPT 0xAB with the operation in r0 and its block in r1. */
#include "cortexm.h"

enum { MH_SYS_OPEN = 0x01, MH_SYS_WRITE = 0x05, MH_SYS_READ = 0x06, MH_SYS_EXIT_EXTENDED = 0x20, MH_SYS_ELAPSED = 0x30 };

#define MH_APPLICATION_EXIT 0x20026u

static uint32_t mh_input, mh_output, mh_noise;

static uint32_t mh_semihost(uint32_t operation, void *block)
{
    register uint32_t r0 __asm__("r0") = operation;
    register void *r1 __asm__("r1") = block;

    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory", "cc");
    return r0;
}

static uint32_t mh_open(const char *name, uint32_t mode)
{
    uint32_t block[3];
    uint32_t num = 0;

    while (name[num] != 0) {
        num++;
    }
    block[0] = (uint32_t)(uintptr_t)name;
    block[1] = mode;
    block[2] = num;
    return mh_semihost(MH_SYS_OPEN, block);
}

static int32_t mh_read_file(uint32_t file, uint8_t *to, uint32_t max)
{
    uint32_t block[3];
    uint32_t left;

    block[0] = file;
    block[1] = (uint32_t)(uintptr_t)to;
    block[2] = max;
    left = mh_semihost(MH_SYS_READ, block);
    return left > max ? -1 : (int32_t)(max - left);
}

static int32_t mh_read(void *self, uint8_t *to, uint32_t max)
{
    (void)self;
    return mh_read_file(mh_input, to, max);
}

static int32_t mh_write(void *self, const uint8_t *from, uint32_t num)
{
    uint32_t block[3];

    (void)self;
    while (num > 0) {
        uint32_t left;
        block[0] = mh_output;
        block[1] = (uint32_t)(uintptr_t)from;
        block[2] = num;
        left = mh_semihost(MH_SYS_WRITE, block);
        if (left >= num) {
            return -1;
        }
        from += num - left;
        num = left;
    }
    return 0;
}

static uint32_t mh_ticks(void *self)
{
    uint32_t block[2] = { 0, 0 };

    (void)self;
    if (mh_image_config.ticks_at != 0) {
        return *(volatile uint32_t *)(uintptr_t)mh_image_config.ticks_at;
    }
    if ((mh_image_config.flags & MH_CONFIG_ELAPSED) != 0) {
        mh_semihost(MH_SYS_ELAPSED, block);
    }
    return block[0];
}

static uint32_t mh_random(void *self)
{
    uint32_t word = 0;

    (void)self;
    if (mh_read_file(mh_noise, (uint8_t *)&word, sizeof word) != (int32_t)sizeof word) {
        mh_port_exit(3);
    }
    return word;
}

void mh_port_open(mh_port *port)
{
    mh_input = mh_open("/dev/stdin", 1);
    mh_output = mh_open("/dev/stdout", 5);
    mh_noise = mh_open("/dev/urandom", 1);
    if (mh_input == ~0u || mh_output == ~0u || mh_noise == ~0u) {
        mh_port_exit(3);
    }
    port->read = mh_read;
    port->write = mh_write;
    port->ticks = mh_ticks;
    port->random = mh_random;
    mh_memory_flash(port);
}

void mh_port_exit(int32_t status)
{
    uint32_t block[2];

    block[0] = MH_APPLICATION_EXIT;
    block[1] = (uint32_t)status;
    for (;;) {
        mh_semihost(MH_SYS_EXIT_EXTENDED, block);
    }
}
