/* What compilers call by themselves; weak, so that a library's own go first. */
#include <stdint.h>
#include <string.h>

/* The empty asm keeps a compiler from turning a loop into a call of the function that it is in. */
#define MH_KEEP_LOOP __asm__ volatile("" ::: "memory")

__attribute__((weak)) void *memcpy(void *to, const void *from, size_t num)
{
    uint8_t *t = to;
    const uint8_t *f = from;

    if ((((uintptr_t)t | (uintptr_t)f) & 3u) == 0) {
        for (; num >= 4; num -= 4, t += 4, f += 4) {
            *(uint32_t *)(void *)t = *(const uint32_t *)(const void *)f;
            MH_KEEP_LOOP;
        }
    }
    for (; num > 0; num--) {
        *t++ = *f++;
        MH_KEEP_LOOP;
    }
    return to;
}

__attribute__((weak)) void *memmove(void *to, const void *from, size_t num)
{
    uint8_t *t = to;
    const uint8_t *f = from;

    if (t < f) {
        for (; num > 0; num--) {
            *t++ = *f++;
            MH_KEEP_LOOP;
        }
    } else {
        while (num > 0) {
            num--;
            t[num] = f[num];
            MH_KEEP_LOOP;
        }
    }
    return to;
}

__attribute__((weak)) void *memset(void *to, int value, size_t num)
{
    uint8_t *t = to;
    uint32_t word = (uint8_t)value * 0x01010101u;

    while (num > 0 && ((uintptr_t)t & 3u) != 0) {
        *t++ = (uint8_t)value;
        num--;
        MH_KEEP_LOOP;
    }
    for (; num >= 4; num -= 4, t += 4) {
        *(uint32_t *)(void *)t = word;
        MH_KEEP_LOOP;
    }
    for (; num > 0; num--) {
        *t++ = (uint8_t)value;
        MH_KEEP_LOOP;
    }
    return to;
}

__attribute__((weak)) int memcmp(const void *a, const void *b, size_t num)
{
    const uint8_t *x = a, *y = b;

    for (; num > 0; num--, x++, y++) {
        MH_KEEP_LOOP;
        if (*x != *y) {
            return *x < *y ? -1 : 1;
        }
    }
    return 0;
}
