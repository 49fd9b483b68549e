/* int8 layers: values are HWC int8, real = scale * (stored - zero point); weights are int8 in [-127, 127] with a scale for
   each output channel; sums are int32.

   Every kernel has a plain C version, one for the DSP instructions (Cortex-M4, M7, M33) and one for MVE (Cortex-M55),
   chosen when compiled (MH_S8_PLAIN forces the plain one). All give the same bits, and read their weights in an order of
   their own, which src/midhaul/devices/pack.py writes: mh_packing() says which.

   The arithmetic of dense, conv and depthwise layers, for output channel o (src/midhaul/models/quantise.py is the twin):

       sum = bias[o] + sum of w * x                      (padded taps count as x = in_zero; bias has -in_zero * sum of w in it)
       y   = clip((((int64)(sum << shift[o]) * multiplier[o] + 2^31) >> 32) + out_zero, low, high)

   The host picks shift so that sum << shift can't overflow. It is the scheme of TensorFlow Lite with one rounding
   (half up) in place of two, so results differ from TFLM's by at most one step.

   What the blob holds for a layer (all little-endian; weight_at and requant_at are multiples of 4). K is the number of
   weights of one output: num_in of a dense layer (the input's HWC order), kh*kw*ic in the order kh, kw, ic of a conv.
   A group past the last output is filled with zeros, in the table too.

     plain   dense, conv       weights [o][K]
             depthwise         weights [o][kh*kw]
             table             mh_requant_s8 [o]
     DSP     dense             groups of 4 outputs: [group][K/4][4 outputs][4 of K], K rounded up to a multiple of 4
             conv              groups of 2 outputs: [group][K/4][2 outputs][4 of K], likewise
             depthwise         as plain
             table             mh_requant_s8 [outputs of all groups]
     MVE     dense, conv       groups of 4 outputs: [group][K/16][4 outputs][16 of K], K rounded up to a multiple of 16
             table             for each group of 4: bias [4], multiplier [4], shift [4]
             depthwise, oc = ic: groups of 16 channels: [group][kh*kw][16]; table: for each group bias [16],
                               multiplier [16], shift [16], the channels in the order 0 4 8 12, 2 6 10 14, 1 5 9 13, 3 7 11 15
             depthwise, else   as plain
     ADD     table             mh_add_table_s8 (all packings); no weights
     pools, quantise, dequantise  nothing

   The mh_*_sizes_s8 functions give the bytes of all this and of the scratch, for the build's own packing.
   Nothing in a table or in weights can make a kernel touch memory outside of its arguments. */
#ifndef MH_S8_H
#define MH_S8_H

#include <stdint.h>

#include "mh_blob.h"
#include "mh_f32.h" /* mh_geometry */

#if defined(MH_S8_PLAIN)
#define MH_S8_PACKING MH_PACK_PLAIN
#elif defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#define MH_S8_MVE 1
#define MH_S8_PACKING MH_PACK_MVE
#elif defined(__ARM_FEATURE_DSP) && defined(__thumb2__)
#define MH_S8_DSP 1
#define MH_S8_PACKING MH_PACK_DSP
#else
#define MH_S8_PACKING MH_PACK_PLAIN
#endif

typedef struct {
    int32_t bias;
    int32_t multiplier;
    int32_t shift; /* 0 .. 31 */
} mh_requant_s8;

/* y = clip((bias + a * multiplier_a + b * multiplier_b >> shift) + out_zero, low, high); both zero points and the half
   for rounding (2^(shift - 1)) are in bias */
typedef struct {
    int32_t bias;
    int32_t multiplier_a, multiplier_b;
    int32_t shift; /* 1 .. 30 */
} mh_add_table_s8;

/* All in -128 .. 127. */
typedef struct {
    int32_t in_zero, out_zero;
    int32_t low, high;
} mh_range_s8;

typedef struct {
    uint32_t weight_bytes;  /* of the packed weights */
    uint32_t requant_bytes; /* of the table */
    uint32_t scratch_bytes; /* in the arena, 4-byte aligned; 0: scratch may be NULL */
} mh_sizes_s8;

/* enum mh_packing: how this build wants the weights. */
int mh_packing(void);

/* `s` has groups = 1 for mh_conv_sizes_s8; for mh_depthwise_sizes_s8 oc is a multiple of ic. MH_NONE32 where the bytes
   don't fit into 32 bits. */
void mh_dense_sizes_s8(uint32_t num_in, uint32_t num_out, mh_sizes_s8 *sizes);
void mh_conv_sizes_s8(const mh_geometry *s, mh_sizes_s8 *sizes);
void mh_depthwise_sizes_s8(const mh_geometry *s, mh_sizes_s8 *sizes);

/* x [num_in], y [num_out] */
void mh_dense_s8(const int8_t *x, const int8_t *w, const void *table, int8_t *y, uint32_t num_in, uint32_t num_out,
                 const mh_range_s8 *range, void *scratch);
/* x [ih, iw, ic], y [oh, ow, oc]; every tap may lie in the padding */
void mh_conv_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                const mh_range_s8 *range, void *scratch);
/* output channel o reads input channel o / (oc / ic) */
void mh_depthwise_s8(const mh_geometry *s, const int8_t *x, const int8_t *w, const void *table, int8_t *y,
                     const mh_range_s8 *range, void *scratch);

/* Pools: input and output have the same scale and zero point; taps in the padding don't count; then clip to low, high.
   The mean is rounded half away from zero, in stored numbers. Every window has a tap inside the map. */
void mh_max_pool_s8(const mh_geometry *s, const int8_t *x, int8_t *y, int32_t low, int32_t high);
void mh_average_pool_s8(const mh_geometry *s, const int8_t *x, int8_t *y, int32_t low, int32_t high);

/* a, b, y [n]; y may be a or b */
void mh_add_s8(const int8_t *a, const int8_t *b, const void *table, int8_t *y, uint32_t n, const mh_range_s8 *range);

/* x [c, positions] float (CHW) -> y [positions, c] int8 (HWC): clip(round_half_even(x * (1.0f / scale)) + zero, low, high),
   NaN as the lowest; positions = h * w */
void mh_quantise_f32_s8(const float *x, int8_t *y, uint32_t c, uint32_t positions, float scale, int32_t zero, int32_t low,
                        int32_t high);
/* x [positions, c] int8 -> y [c, positions] float: (x - zero) * scale */
void mh_dequantise_s8_f32(const int8_t *x, float *y, uint32_t c, uint32_t positions, float scale, int32_t zero);

#endif
