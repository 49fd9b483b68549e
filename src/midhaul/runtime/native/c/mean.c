/* No product is fused with its sum, so that a mean has the same bits on every processor. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include "mean.h"

#include "vector.h"

#define VECTORS 4 /* of columns that are summed side by side */

typedef double vd __attribute__((vector_size(8 * MK_LANES)));

MK_INLINE void columns(const float *values, const double *share, int64_t num, int64_t size, float *out, int vectors)
{
    vd sum[VECTORS] = {0};
    for (int64_t d = 0; d < num; d++)
        for (int n = 0; n < vectors; n++)
            sum[n] += share[d] * __builtin_convertvector(load(values + d * size + n * MK_LANES), vd);
    for (int n = 0; n < vectors; n++)
        store(out + n * MK_LANES, __builtin_convertvector(sum[n], vf));
}

void mk_mean(const float *values, const double *share, int64_t num, int64_t size, float *out)
{
    int64_t c = 0;
    for (; c + VECTORS * MK_LANES <= size; c += VECTORS * MK_LANES)
        columns(values + c, share, num, size, out + c, VECTORS);
    for (; c + MK_LANES <= size; c += MK_LANES)
        columns(values + c, share, num, size, out + c, 1);
    for (; c < size; c++) {
        double sum = 0.0;
        for (int64_t d = 0; d < num; d++)
            sum += share[d] * (double)values[d * size + c];
        out[c] = (float)sum;
    }
}
