#ifndef MK_MEAN_H
#define MK_MEAN_H

#include <stdint.h>

/* The sum of share[d] * values[d][c], in double precision and in the order of d, each product rounded. values [num][size], out [size]. */
void mk_mean(const float *values, const double *share, int64_t num, int64_t size, float *out);

#endif
