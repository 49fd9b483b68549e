/* A few numbers next to one another that belong to sums of their own: a vector register on a host, and on a Cortex-M as
   many FPU registers. Working on them at once changes no sum. */
#ifndef MH_LANES_F32_H
#define MH_LANES_F32_H

#include <stdint.h>

#define MH_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define MH_UNROLL _Pragma("unroll")
#else
#define MH_UNROLL _Pragma("GCC unroll 8")
#endif

#if defined(__SSE2__) || defined(__aarch64__)

#define MH_LANES 8
typedef float mh_four __attribute__((vector_size(16)));
typedef struct {
    mh_four v[2];
} mh_lanes;

MH_INLINE mh_four mh_four_load(const float *p)
{
    mh_four v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

MH_INLINE mh_lanes mh_lanes_load(const float *p, int32_t stride)
{
    mh_lanes a;
    if (stride == 1) {
        a.v[0] = mh_four_load(p);
        a.v[1] = mh_four_load(p + 4);
    } else {
        a.v[0] = (mh_four){p[0], p[stride], p[2 * stride], p[3 * stride]};
        p += 4 * stride;
        a.v[1] = (mh_four){p[0], p[stride], p[2 * stride], p[3 * stride]};
    }
    return a;
}

MH_INLINE mh_lanes mh_lanes_set(float x)
{
    mh_four v = {x, x, x, x};
    return (mh_lanes){{v, v}};
}

MH_INLINE mh_lanes mh_lanes_add(mh_lanes a, mh_lanes b)
{
    return (mh_lanes){{a.v[0] + b.v[0], a.v[1] + b.v[1]}};
}

MH_INLINE mh_lanes mh_lanes_mul(mh_lanes a, float w)
{
    mh_four v = {w, w, w, w};
    return (mh_lanes){{a.v[0] * v, a.v[1] * v}};
}

MH_INLINE void mh_lanes_store(float *p, int32_t stride, mh_lanes a)
{
    if (stride == 1) {
        __builtin_memcpy(p, &a.v[0], sizeof a.v[0]);
        __builtin_memcpy(p + 4, &a.v[1], sizeof a.v[1]);
        return;
    }
    MH_UNROLL
    for (int32_t i = 0; i < 4; i++) {
        p[i * stride] = a.v[0][i];
        p[(i + 4) * stride] = a.v[1][i];
    }
}

#else

#define MH_LANES 4
typedef struct {
    float a, b, c, d;
} mh_lanes;

MH_INLINE mh_lanes mh_lanes_load(const float *p, int32_t stride)
{
    return (mh_lanes){p[0], p[stride], p[2 * stride], p[3 * stride]};
}

MH_INLINE mh_lanes mh_lanes_set(float x)
{
    return (mh_lanes){x, x, x, x};
}

MH_INLINE mh_lanes mh_lanes_add(mh_lanes x, mh_lanes y)
{
    return (mh_lanes){x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d};
}

MH_INLINE mh_lanes mh_lanes_mul(mh_lanes x, float w)
{
    return (mh_lanes){x.a * w, x.b * w, x.c * w, x.d * w};
}

MH_INLINE void mh_lanes_store(float *p, int32_t stride, mh_lanes x)
{
    p[0] = x.a;
    p[stride] = x.b;
    p[2 * stride] = x.c;
    p[3 * stride] = x.d;
}

#endif
#endif
