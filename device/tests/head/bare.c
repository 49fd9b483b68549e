/* The two functions of libc that compilers call by themselves, for builds without one. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t num);
void *memset(void *to, int byte, size_t num);

void *memcpy(void *restrict to, const void *restrict from, size_t num)
{
    uint8_t *t = to;
    const uint8_t *f = from;
    while (num--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int byte, size_t num)
{
    uint8_t *t = to;
    if (((uintptr_t)t | num) % 4 == 0) {
        uint32_t word = (uint32_t)(uint8_t)byte * 0x01010101u;
        for (; num >= 16; num -= 16, t += 16) {
            uint32_t *at = (void *)t;
            at[0] = at[1] = at[2] = at[3] = word;
        }
    }
    while (num--)
        *t++ = (uint8_t)byte;
    return to;
}
