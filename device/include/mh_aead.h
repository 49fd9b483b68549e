/* ChaCha20-Poly1305 (RFC 8439, section 2.8), in place, without tables or branches on secrets.

   Limits: constant in time where a 32 by 32 bit multiplication is. Cortex-M3 has a long multiplication that isn't; there
   the products are made of 16 bit ones (MH_AEAD_SHORT_PRODUCTS, set by itself). One key and nonce must never seal twice. */
#ifndef MH_AEAD_H
#define MH_AEAD_H

#include <stdint.h>

#define MH_AEAD_KEY 32
#define MH_AEAD_NONCE 12
#define MH_AEAD_TAG 16

/* Encrypts data [num] in place and writes the tag [16] over `ad` [num_ad] and it. */
void mh_aead_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *ad, uint32_t num_ad, uint8_t *data,
                  uint32_t num, uint8_t *tag);

/* Decrypts data [num] in place: 0, or -1 with the data as they were if the tag is wrong. */
int mh_aead_open(const uint8_t *key, const uint8_t *nonce, const uint8_t *ad, uint32_t num_ad, uint8_t *data,
                 uint32_t num, const uint8_t *tag);

/* Writes a new key [32]: the first half of the ChaCha20 block of `key` [32] whose counter and nonce are `input` [16].
   A key that derives others must do nothing else. */
void mh_aead_derive(const uint8_t *key, const uint8_t *input, uint8_t *out);

#endif
