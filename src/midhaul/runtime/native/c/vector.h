#ifndef MK_VECTOR_H
#define MK_VECTOR_H

/* Vectors of floats as wide as this machine's, by the extensions that GCC and clang share. A sum always runs along the
   scalar index, in order, with one lane for each output: so no result depends on how wide the vectors are. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define MK_LANES 16
#define MK_ROWS 14 /* rows of a block two vectors wide: with the two vectors and a broadcast they fill the registers */
#elif defined(__AVX__)
#define MK_LANES 8
#define MK_ROWS 6
#elif defined(__aarch64__)
#define MK_LANES 4
#define MK_ROWS 14
#else
#define MK_LANES 4
#define MK_ROWS 6
#endif

/* CASE(1, vectors) to CASE(MK_ROWS, vectors). */
#if MK_ROWS == 14
#define MK_EACH_ROWS(CASE, vectors)                                                                                    \
    CASE(1, vectors) CASE(2, vectors) CASE(3, vectors) CASE(4, vectors) CASE(5, vectors) CASE(6, vectors)              \
    CASE(7, vectors) CASE(8, vectors) CASE(9, vectors) CASE(10, vectors) CASE(11, vectors) CASE(12, vectors)           \
    CASE(13, vectors) CASE(14, vectors)
#else
#define MK_EACH_ROWS(CASE, vectors)                                                                                    \
    CASE(1, vectors) CASE(2, vectors) CASE(3, vectors) CASE(4, vectors) CASE(5, vectors) CASE(6, vectors)
#endif

#define MK_INLINE static inline __attribute__((always_inline))
#define MK_UNROLL _Pragma("GCC unroll 16")

typedef float vf __attribute__((vector_size(4 * MK_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * MK_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * MK_LANES)));
typedef float vf_any __attribute__((vector_size(4 * MK_LANES), aligned(4), may_alias));
typedef int32_t vi_any __attribute__((vector_size(4 * MK_LANES), aligned(4), may_alias));

MK_INLINE vf load(const float *p)
{
    return *(const vf_any *)p;
}

MK_INLINE void store(float *p, vf v)
{
    *(vf_any *)p = v;
}

MK_INLINE vf all(float x)
{
    return x - (vf){0};
}

/* Masked moves by gcc's own names for them: <immintrin.h> would be most of what there is to compile. */
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#define MK_STORE_MASK(p, v, mask) __builtin_ia32_storeups512_mask(p, v, mask)
#define MK_LOAD_MASK(p, mask) __builtin_ia32_loadups512_mask(p, (vf){0}, mask)
#elif defined(__AVX512F__)
#include <immintrin.h>
#define MK_STORE_MASK(p, v, mask) _mm512_mask_storeu_ps(p, mask, (__m512)(v))
#define MK_LOAD_MASK(p, mask) (vf) _mm512_maskz_loadu_ps(mask, p)
#endif

/* Stores the first `num` lanes alone. */
MK_INLINE void store_first(float *p, vf v, int num)
{
#ifdef MK_STORE_MASK
    MK_STORE_MASK(p, v, (uint16_t)((1u << num) - 1u));
#else
    memcpy(p, &v, (size_t)num * sizeof(float));
#endif
}

/* Loads the first `num` lanes alone; the others are 0. */
MK_INLINE vf load_first(const float *p, int num)
{
#ifdef MK_LOAD_MASK
    return MK_LOAD_MASK(p, (uint16_t)((1u << num) - 1u));
#else
    vf v = {0};
    memcpy(&v, p, (size_t)num * sizeof(float));
    return v;
#endif
}

/* a where the lane of `which` is set (all ones), else b. */
MK_INLINE vf choose(vi which, vf a, vf b)
{
    return (vf)(((vi)a & which) | ((vi)b & ~which));
}

MK_INLINE int64_t rounded(int64_t n)
{
    return (n + MK_LANES - 1) / MK_LANES * MK_LANES;
}

#endif
