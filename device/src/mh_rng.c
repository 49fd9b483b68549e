#include "mh_rng.h"

void mh_philox(const uint32_t counter[4], uint64_t seed, uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

void mh_permutation_u16(uint64_t seed, uint32_t round, uint32_t device, uint32_t use, uint16_t *order, uint32_t n) {
    uint32_t counter[4] = {0, round, device, use}, words[4] = {0};
    for (uint32_t i = 0; i < n; i++) order[i] = (uint16_t)i;
    for (uint32_t step = 0; step + 1 < n; step++) {
        if (step % 4 == 0) {
            mh_philox(counter, seed, words);
            counter[0]++;
        }
        uint32_t last = n - 1 - step, other = (uint32_t)((uint64_t)words[step % 4] * (last + 1) >> 32);
        uint16_t held = order[last];
        order[last] = order[other];
        order[other] = held;
    }
}
