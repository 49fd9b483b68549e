#include "blocks.h"

typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef float v4_any __attribute__((vector_size(16), aligned(4), may_alias));

#if defined(__clang__)
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (i4){i, j, k, l})
#endif

MK_INLINE void four_by_four(const float *from, int64_t ldf, float *to, int64_t ldt)
{
    v4 a = *(const v4_any *)from, b = *(const v4_any *)(from + ldf);
    v4 c = *(const v4_any *)(from + 2 * ldf), d = *(const v4_any *)(from + 3 * ldf);
    v4 ab = PICK(a, b, 0, 4, 1, 5), cd = PICK(c, d, 0, 4, 1, 5);
    v4 ab_high = PICK(a, b, 2, 6, 3, 7), cd_high = PICK(c, d, 2, 6, 3, 7);
    *(v4_any *)to = PICK(ab, cd, 0, 1, 4, 5);
    *(v4_any *)(to + ldt) = PICK(ab, cd, 2, 3, 6, 7);
    *(v4_any *)(to + 2 * ldt) = PICK(ab_high, cd_high, 0, 1, 4, 5);
    *(v4_any *)(to + 3 * ldt) = PICK(ab_high, cd_high, 2, 3, 6, 7);
}

void mk_transpose_f32(const float *from, int64_t rows, int64_t columns, int64_t ldf, float *to, int64_t ldt)
{
    const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int64_t part = 0; part < whole_rows; part += 16) { /* a line of the cache of `to` at a time */
        int64_t end = part + 16 < whole_rows ? part + 16 : whole_rows;
        for (int64_t c = 0; c < whole_columns; c += 4)
            for (int64_t r = part; r < end; r += 4)
                four_by_four(from + r * ldf + c, ldf, to + c * ldt + r, ldt);
    }
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = c < whole_columns ? whole_rows : 0; r < rows; r++)
            to[c * ldt + r] = from[r * ldf + c];
}
