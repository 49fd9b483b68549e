/* The inner loops of dense layers and of SGD for Cortex-M with a float32 FPU: several numbers a load, which compilers
   don't make of C. Same operations in the same order as the C beside each; n is a count of numbers, a multiple of 4. */
#ifndef MH_VFP_F32_H
#define MH_VFP_F32_H

#include <stdint.h>

#if defined(__ARM_FP) && (__ARM_FP & 4) && defined(__thumb2__)
#define MH_VFP 1

/* sum[0..3] += w[0..3][i] * x[i] of four rows, `step` numbers apart */
static inline void mh_vfp_dots(const float *x, const float *w, uint32_t step, uint32_t n, float *sum)
{
    const float *w0 = w, *w1 = w + step, *w2 = w1 + step, *w3 = w2 + step;
    __asm__ volatile("vldm %[sum], {s20-s23}\n"
                     "1:\n"
                     "vldmia %[x]!, {s0-s3}\n"
                     "vldmia %[w0]!, {s4-s7}\n"
                     "vldmia %[w1]!, {s8-s11}\n"
                     "vldmia %[w2]!, {s12-s15}\n"
                     "vldmia %[w3]!, {s16-s19}\n"
                     "vmul.f32 s4, s4, s0\n"
                     "vmul.f32 s8, s8, s0\n"
                     "vmul.f32 s12, s12, s0\n"
                     "vmul.f32 s16, s16, s0\n"
                     "vmul.f32 s5, s5, s1\n"
                     "vmul.f32 s9, s9, s1\n"
                     "vmul.f32 s13, s13, s1\n"
                     "vmul.f32 s17, s17, s1\n"
                     "vadd.f32 s20, s20, s4\n"
                     "vadd.f32 s21, s21, s8\n"
                     "vadd.f32 s22, s22, s12\n"
                     "vadd.f32 s23, s23, s16\n"
                     "vmul.f32 s6, s6, s2\n"
                     "vmul.f32 s10, s10, s2\n"
                     "vmul.f32 s14, s14, s2\n"
                     "vmul.f32 s18, s18, s2\n"
                     "vadd.f32 s20, s20, s5\n"
                     "vadd.f32 s21, s21, s9\n"
                     "vadd.f32 s22, s22, s13\n"
                     "vadd.f32 s23, s23, s17\n"
                     "vmul.f32 s7, s7, s3\n"
                     "vmul.f32 s11, s11, s3\n"
                     "vmul.f32 s15, s15, s3\n"
                     "vmul.f32 s19, s19, s3\n"
                     "vadd.f32 s20, s20, s6\n"
                     "vadd.f32 s21, s21, s10\n"
                     "vadd.f32 s22, s22, s14\n"
                     "vadd.f32 s23, s23, s18\n"
                     "subs %[n], %[n], #4\n"
                     "vadd.f32 s20, s20, s7\n"
                     "vadd.f32 s21, s21, s11\n"
                     "vadd.f32 s22, s22, s15\n"
                     "vadd.f32 s23, s23, s19\n"
                     "bne 1b\n"
                     "vstm %[sum], {s20-s23}\n"
                     : [x] "+r"(x), [w0] "+r"(w0), [w1] "+r"(w1), [w2] "+r"(w2), [w3] "+r"(w3), [n] "+r"(n)
                     : [sum] "r"(sum)
                     : "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "s12", "s13", "s14",
                       "s15", "s16", "s17", "s18", "s19", "s20", "s21", "s22", "s23", "cc", "memory");
}

/* sum[0..7] += w[o][0..7] * g[o] over `num` rows o, `step` numbers apart */
static inline void mh_vfp_columns(const float *g, const float *w, uint32_t step, uint32_t num, float *sum)
{
    uint32_t skip = step * 4;
    __asm__ volatile("vldm %[sum], {s8-s15}\n"
                     "1:\n"
                     "vldm %[w], {s0-s7}\n"
                     "vldmia %[g]!, {s16}\n"
                     "vmul.f32 s0, s0, s16\n"
                     "vmul.f32 s1, s1, s16\n"
                     "vmul.f32 s2, s2, s16\n"
                     "vmul.f32 s3, s3, s16\n"
                     "vmul.f32 s4, s4, s16\n"
                     "vmul.f32 s5, s5, s16\n"
                     "vmul.f32 s6, s6, s16\n"
                     "vmul.f32 s7, s7, s16\n"
                     "add %[w], %[w], %[skip]\n"
                     "subs %[num], %[num], #1\n"
                     "vadd.f32 s8, s8, s0\n"
                     "vadd.f32 s9, s9, s1\n"
                     "vadd.f32 s10, s10, s2\n"
                     "vadd.f32 s11, s11, s3\n"
                     "vadd.f32 s12, s12, s4\n"
                     "vadd.f32 s13, s13, s5\n"
                     "vadd.f32 s14, s14, s6\n"
                     "vadd.f32 s15, s15, s7\n"
                     "bne 1b\n"
                     "vstm %[sum], {s8-s15}\n"
                     : [g] "+r"(g), [w] "+r"(w), [num] "+r"(num)
                     : [sum] "r"(sum), [skip] "r"(skip)
                     : "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "s12", "s13", "s14",
                       "s15", "s16", "cc", "memory");
}

/* y[i] += x[i] * factor */
static inline void mh_vfp_add_scaled(float *y, const float *x, float factor, uint32_t n)
{
    __asm__ volatile("1:\n"
                     "vldmia %[x]!, {s0-s3}\n"
                     "vldm %[y], {s4-s7}\n"
                     "vmul.f32 s0, s0, %[factor]\n"
                     "vmul.f32 s1, s1, %[factor]\n"
                     "vmul.f32 s2, s2, %[factor]\n"
                     "vmul.f32 s3, s3, %[factor]\n"
                     "subs %[n], %[n], #4\n"
                     "vadd.f32 s4, s4, s0\n"
                     "vadd.f32 s5, s5, s1\n"
                     "vadd.f32 s6, s6, s2\n"
                     "vadd.f32 s7, s7, s3\n"
                     "vstmia %[y]!, {s4-s7}\n"
                     "bne 1b\n"
                     : [x] "+r"(x), [y] "+r"(y), [n] "+r"(n)
                     : [factor] "t"(factor)
                     : "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "cc", "memory");
}

#endif
#endif
