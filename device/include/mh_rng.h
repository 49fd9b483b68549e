/* The counter-based source of random numbers: the twin of midhaul/rng.py. */
#ifndef MH_RNG_H
#define MH_RNG_H

#include <stdint.h>

/* What a stream is for, as rng.Use. */
enum mh_use { MH_USE_BATCH = 2, MH_USE_CODE = 13 };

/* Writes the Philox4x32-10 block of a counter under a 64-bit seed. out may be counter. */
void mh_philox(const uint32_t counter[4], uint64_t seed, uint32_t out[4]);

/* Writes an order of 0..n-1, the one of rng.permutation(key(seed, round, device, use), n). order: [n], n <= 65536.
   `use` may hold an index in its upper 24 bits, as rng.Key.at. */
void mh_permutation_u16(uint64_t seed, uint32_t round, uint32_t device, uint32_t use, uint16_t *order, uint32_t n);

#endif
