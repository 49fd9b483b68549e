/* Counts the instructions of an emulated Cortex-M: Unicorn calls this once for each block of code that it runs. */
#include <stdint.h>

typedef struct {
    const uint8_t *code; /* a copy of what lies at `from` */
    uint64_t from, num;
    uint64_t instructions;
} mh_counter;

void mh_count_block(void *emulator, uint64_t address, uint32_t bytes, void *self);

void mh_count_block(void *emulator, uint64_t address, uint32_t bytes, void *self)
{
    mh_counter *c = self;
    uint64_t at = address - c->from, end = at + bytes;

    (void)emulator;
    if (address < c->from || end > c->num) {
        return;
    }
    while (at < end) {
        /* A Thumb instruction is 32 bits long if its first five bits are 11101, 11110 or 11111. */
        at += c->code[at + 1] >= 0xe8u ? 4 : 2;
        c->instructions++;
    }
}
