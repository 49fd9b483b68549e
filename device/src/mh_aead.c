#include "mh_aead.h"

#include <string.h>

#if defined(__ARM_ARCH_7M__) && !defined(MH_AEAD_SHORT_PRODUCTS)
#define MH_AEAD_SHORT_PRODUCTS 1 /* Cortex-M3: UMULL takes 3 to 5 cycles, by its operands */
#endif

static uint32_t load(const uint8_t *from) {
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static void store(uint8_t *to, uint32_t word) {
    to[0] = (uint8_t)word;
    to[1] = (uint8_t)(word >> 8);
    to[2] = (uint8_t)(word >> 16);
    to[3] = (uint8_t)(word >> 24);
}

static uint32_t rotate(uint32_t word, int left) { return word << left | word >> (32 - left); }

/* A macro, so that the 16 words may stay in registers at any level of optimisation. */
#define QUARTER(a, b, c, d)                                  \
    (x[a] += x[b], x[d] = rotate(x[d] ^ x[a], 16),           \
     x[c] += x[d], x[b] = rotate(x[b] ^ x[c], 12),           \
     x[a] += x[b], x[d] = rotate(x[d] ^ x[a], 8),            \
     x[c] += x[d], x[b] = rotate(x[b] ^ x[c], 7))

/* state: [16]: constants, key, counter and nonce. out: [64]. RFC 8439, section 2.3. */
static void block(const uint32_t *state, uint8_t *out) {
    uint32_t x[16];
    memcpy(x, state, sizeof x);
    for (int i = 0; i < 10; i++) {
        QUARTER(0, 4, 8, 12), QUARTER(1, 5, 9, 13), QUARTER(2, 6, 10, 14), QUARTER(3, 7, 11, 15);
        QUARTER(0, 5, 10, 15), QUARTER(1, 6, 11, 12), QUARTER(2, 7, 8, 13), QUARTER(3, 4, 9, 14);
    }
    for (int i = 0; i < 16; i++) store(out + 4 * i, x[i] + state[i]);
}

static void set_key(uint32_t *state, const uint8_t *key) {
    state[0] = 0x61707865u, state[1] = 0x3320646eu, state[2] = 0x79622d32u, state[3] = 0x6b206574u;
    for (int i = 0; i < 8; i++) state[4 + i] = load(key + 4 * i);
}

static void set_nonce(uint32_t *state, const uint8_t *nonce) {
    state[12] = 0;
    for (int i = 0; i < 3; i++) state[13 + i] = load(nonce + 4 * i);
}

/* Data are under the blocks from number 1 on; block 0 is Poly1305's key. */
static void cipher(uint32_t *state, uint8_t *data, uint32_t num) {
    uint8_t pad[64];
    state[12] = 1;
    for (uint32_t at = 0; at < num; at += 64, state[12]++) {
        uint32_t part = num - at < 64 ? num - at : 64;
        block(state, pad);
        for (uint32_t i = 0; i < part; i++) data[at + i] ^= pad[i];
    }
}

/* Poly1305 with five limbs of 26 bits (as D. J. Bernstein, A. Moon: poly1305-donna, public domain). */
typedef struct {
    uint32_t r[9]; /* limb k at 4 + k; below it five times limb k + 5: 2^130 is 5, so what passes the top comes back so */
    uint32_t h[5], pad[4];
} poly;

static uint64_t product(uint32_t a, uint32_t b) {
#ifdef MH_AEAD_SHORT_PRODUCTS
    uint32_t al = a & 0xffffu, ah = a >> 16, bl = b & 0xffffu, bh = b >> 16;
    return (uint64_t)(al * bl) + ((uint64_t)(al * bh) << 16) + ((uint64_t)(ah * bl) << 16) + ((uint64_t)(ah * bh) << 32);
#else
    return (uint64_t)a * b;
#endif
}

static void poly_begin(poly *p, const uint8_t *key) {
    p->r[4] = load(key) & 0x3ffffffu;
    p->r[5] = load(key + 3) >> 2 & 0x3ffff03u;
    p->r[6] = load(key + 6) >> 4 & 0x3ffc0ffu;
    p->r[7] = load(key + 9) >> 6 & 0x3f03fffu;
    p->r[8] = load(key + 12) >> 8 & 0x00fffffu;
    for (int i = 0; i < 4; i++) p->r[i] = 5 * p->r[5 + i];
    for (int i = 0; i < 5; i++) p->h[i] = 0;
    for (int i = 0; i < 4; i++) p->pad[i] = load(key + 16 + 4 * i);
}

/* h = (h + block) * r mod 2^130 - 5; from: [16]. The AEAD pads with zeros, so that every block is whole. */
static void poly_block(poly *p, const uint8_t *from) {
    uint32_t *h = p->h, carry = 0, low[5];
    h[0] += load(from) & 0x3ffffffu;
    h[1] += load(from + 3) >> 2 & 0x3ffffffu;
    h[2] += load(from + 6) >> 4 & 0x3ffffffu;
    h[3] += load(from + 9) >> 6 & 0x3ffffffu;
    h[4] += load(from + 12) >> 8 | 1u << 24;
    for (int i = 0; i < 5; i++) {
        const uint32_t *r = p->r + 4 + i;
        uint64_t sum = (uint64_t)carry + product(h[0], r[0]) + product(h[1], r[-1]) + product(h[2], r[-2]) +
                       product(h[3], r[-3]) + product(h[4], r[-4]);
        carry = (uint32_t)(sum >> 26);
        low[i] = (uint32_t)sum & 0x3ffffffu;
    }
    for (int i = 0; i < 5; i++) h[i] = low[i];
    h[0] += 5 * carry;
    h[1] += h[0] >> 26;
    h[0] &= 0x3ffffffu;
}

static void poly_add(poly *p, const uint8_t *from, uint32_t num) {
    uint32_t at = 0;
    for (; num - at >= 16; at += 16) poly_block(p, from + at);
    if (at < num) {
        uint8_t last[16] = {0};
        memcpy(last, from + at, num - at);
        poly_block(p, last);
    }
}

static void poly_end(poly *p, uint8_t *tag) {
    uint32_t *h = p->h, less[5], carry = 0, mask;
    for (int i = 1; i < 5; i++) {
        h[i] += carry;
        carry = h[i] >> 26;
        h[i] &= 0x3ffffffu;
    }
    h[0] += 5 * carry;
    carry = h[0] >> 26;
    h[0] &= 0x3ffffffu;
    h[1] += carry;
    /* h or h - p, whichever is below p: less = h + 5 - 2^130. */
    carry = 5;
    for (int i = 0; i < 5; i++) {
        less[i] = h[i] + carry;
        carry = less[i] >> 26;
        less[i] &= 0x3ffffffu;
    }
    mask = 0u - (carry & 1u);
    for (int i = 0; i < 5; i++) h[i] = (h[i] & ~mask) | (less[i] & mask);
    uint32_t words[4] = {h[0] | h[1] << 26, h[1] >> 6 | h[2] << 20, h[2] >> 12 | h[3] << 14, h[3] >> 18 | h[4] << 8};
    uint64_t sum = 0;
    for (int i = 0; i < 4; i++) {
        sum = (sum >> 32) + words[i] + p->pad[i];
        store(tag + 4 * i, (uint32_t)sum);
    }
}

static void tag_of(uint32_t *state, const uint8_t *ad, uint32_t num_ad, const uint8_t *data, uint32_t num,
                   uint8_t *tag) {
    uint8_t first[64], lengths[16] = {0};
    poly p;
    state[12] = 0;
    block(state, first);
    poly_begin(&p, first);
    poly_add(&p, ad, num_ad);
    poly_add(&p, data, num);
    store(lengths, num_ad);
    store(lengths + 8, num);
    poly_block(&p, lengths);
    poly_end(&p, tag);
}

void mh_aead_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *ad, uint32_t num_ad, uint8_t *data,
                  uint32_t num, uint8_t *tag) {
    uint32_t state[16];
    set_key(state, key);
    set_nonce(state, nonce);
    cipher(state, data, num);
    tag_of(state, ad, num_ad, data, num, tag);
}

int mh_aead_open(const uint8_t *key, const uint8_t *nonce, const uint8_t *ad, uint32_t num_ad, uint8_t *data,
                 uint32_t num, const uint8_t *tag) {
    uint32_t state[16], differ = 0;
    uint8_t right[MH_AEAD_TAG];
    set_key(state, key);
    set_nonce(state, nonce);
    tag_of(state, ad, num_ad, data, num, right);
    for (int i = 0; i < MH_AEAD_TAG; i++) differ |= (uint32_t)(right[i] ^ tag[i]);
    if (differ) return -1;
    cipher(state, data, num);
    return 0;
}

void mh_aead_derive(const uint8_t *key, const uint8_t *input, uint8_t *out) {
    uint32_t state[16];
    uint8_t whole[64];
    set_key(state, key);
    for (int i = 0; i < 4; i++) state[12 + i] = load(input + 4 * i);
    block(state, whole);
    memcpy(out, whole, MH_AEAD_KEY);
}
