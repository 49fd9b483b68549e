#include "mh_math.h"

/* The polynomials are those of Moshier's Cephes library, expf.c and logf.c (public, www.netlib.org/cephes). */

uint32_t mh_bits_f32(float x)
{
    union {
        float x;
        uint32_t bits;
    } both = {x};
    return both.bits;
}

float mh_from_bits_f32(uint32_t bits)
{
    union {
        uint32_t bits;
        float x;
    } both = {bits};
    return both.x;
}

static float power_of_two(int32_t n) /* -126 <= n <= 127 */
{
    return mh_from_bits_f32((uint32_t)(n + 127) << 23);
}

float mh_exp_f32(float x)
{
    if (!(x > -104.0f)) /* not a number stays one */
        return x <= -104.0f ? 0.0f : x;
    if (x > 89.0f)
        return mh_from_bits_f32(0x7f800000u);
    float turns = x * 1.44269504f;
    int32_t n = (int32_t)(turns < 0.0f ? turns - 0.5f : turns + 0.5f);
    float whole = (float)n;
    float r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    /* In two steps, since 2^n itself may be no normal number; only the second can round. */
    int32_t half = n / 2;
    return (p * power_of_two(half)) * power_of_two(n - half);
}

float mh_log_f32(float x)
{
    uint32_t bits = mh_bits_f32(x);
    int32_t e = 0;
    if ((bits & 0x7fffffffu) == 0)
        return mh_from_bits_f32(0xff800000u);
    if (bits >= 0x7f800000u)
        return bits > 0x7f800000u ? mh_from_bits_f32(0x7fc00000u) : x;
    if (bits < 0x00800000u) {
        bits = mh_bits_f32(x * 8388608.0f);
        e = -23;
    }
    e += (int32_t)(bits >> 23) - 126;
    float m = mh_from_bits_f32((bits & 0x007fffffu) | 0x3f000000u); /* [0.5, 1) */
    if (m < 0.707106781f) {
        e -= 1;
        m = (m + m) - 1.0f;
    } else {
        m = m - 1.0f;
    }
    float z = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    float whole = (float)e;
    float y = p * (m * z);
    y = y + whole * -2.12194440e-4f;
    y = y - 0.5f * z;
    return (m + y) + whole * 0.693359375f;
}

#if defined(__ARM_FP) && (__ARM_FP & 4)

float mh_sqrt_f32(float x)
{
    float y;
    __asm__("vsqrt.f32 %0, %1" : "=t"(y) : "t"(x));
    return y;
}

#else

/* Bit by bit: 25 bits of the root, the last one to round by. */
float mh_sqrt_f32(float x)
{
    uint32_t bits = mh_bits_f32(x);
    if ((bits & 0x7fffffffu) == 0 || bits == 0x7f800000u)
        return x;
    if (bits > 0x7f800000u)
        return mh_from_bits_f32(0x7fc00000u);
    int32_t e = (int32_t)(bits >> 23);
    uint32_t m = bits & 0x007fffffu;
    if (e == 0) {
        e = 1;
        while (!(m & 0x00800000u)) {
            m <<= 1;
            e--;
        }
    } else {
        m |= 0x00800000u;
    }
    e -= 127;
    if (e & 1) {
        m <<= 1;
        e--;
    }
    m <<= 1;
    uint32_t root = 0, sum = 0;
    for (uint32_t bit = 0x01000000u; bit; bit >>= 1) {
        if (sum + bit <= m) {
            m -= sum + bit;
            sum += bit + bit;
            root += bit;
        }
        m <<= 1;
    }
    /* A root of 25 bits is never half-way: its last bit says which way to round. */
    root += root & 1u;
    return mh_from_bits_f32((root >> 1) + ((uint32_t)(e / 2 + 126) << 23));
}

#endif
