#include "kernel.h"

/* Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3: Philox4x32-10. */
static void philox(uint32_t c[4], uint32_t k0, uint32_t k1)
{
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)c[0] * 0xD2511F53u, p1 = (uint64_t)c[2] * 0xCD9E8D57u;
        uint32_t c1 = c[1], c3 = c[3];
        c[0] = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c[1] = (uint32_t)p1;
        c[2] = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c[3] = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

void mk_permutation(uint64_t seed, uint32_t round, uint32_t device, uint32_t use, int64_t num, int64_t *order)
{
    uint32_t word[4] = {0};
    for (int64_t i = 0; i < num; i++)
        order[i] = i;
    for (int64_t i = 0; i + 1 < num; i++) {
        if (i % 4 == 0) {
            word[0] = (uint32_t)(i / 4);
            word[1] = round;
            word[2] = device;
            word[3] = use;
            philox(word, (uint32_t)seed, (uint32_t)(seed >> 32));
        }
        int64_t last = num - 1 - i, other = (int64_t)(((uint64_t)word[i % 4] * (uint64_t)(last + 1)) >> 32);
        int64_t held = order[last];
        order[last] = order[other];
        order[other] = held;
    }
}
