/* exp, log and sqrt in float32 alone, made of +, -, * and moves of bits, so that they give the same bits on every
   machine. exp and log are within 1.5 units in the last place, sqrt is correctly rounded. */
#ifndef MH_MATH_H
#define MH_MATH_H

#include <stdint.h>

float mh_exp_f32(float x);  /* 0 below -103.98, infinity above 88.73; gradual underflow between */
float mh_log_f32(float x);  /* -infinity for 0, not a number below it */
float mh_sqrt_f32(float x); /* not a number below 0 */

uint32_t mh_bits_f32(float x);    /* the bits of a number */
float mh_from_bits_f32(uint32_t bits);

#endif
