/* A dense head trained from numbers made here, for tests: every build must end with the same bits. */
#include <stddef.h>

#include "mh_f32.h"

static float next(uint32_t *state) /* [-1, 1), xorshift32 */
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return (float)(*state >> 8) * (1.0f / 8388608.0f) - 1.0f;
}

static void zero(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = 0.0f;
}

/* arena: w [out, in], b [out], sums of both, velocities of both, x [in], logits [out], g [out]. */
uint32_t mh_head_floats(uint32_t num_in, uint32_t num_out)
{
    return 3 * (num_in + 1) * num_out + num_in + 2 * num_out;
}

/* `steps` SGD steps of one example each; with momentum, decay and a pull to 0 if `full`. */
void mh_head_train(float *arena, uint32_t num_in, uint32_t num_out, uint32_t steps, uint32_t full)
{
    uint32_t n = (num_in + 1) * num_out, weights = num_in * num_out, state = 2463534242u;
    float *w = arena, *sums = w + n, *velocity = sums + n, *x = velocity + n, *logits = x + num_in, *g = logits + num_out;
    for (uint32_t i = 0; i < n; i++)
        w[i] = next(&state) * 0.25f;
    zero(velocity, n);
    for (uint32_t step = 0; step < steps; step++) {
        for (uint32_t i = 0; i < num_in; i++)
            x[i] = next(&state);
        zero(sums, n);
        mh_dense_f32(x, w, w + weights, logits, num_in, num_out);
        mh_cross_entropy_f32(logits, num_out, (int32_t)(step % num_out), 1.0f, g);
        mh_dense_params_f32(g, x, sums, sums + weights, num_in, num_out);
        if (full)
            mh_sgd_f32(w, sums, velocity, velocity, n, 0.05f, 0.9f, 0.01f, 0.1f);
        else
            mh_sgd_f32(w, sums, NULL, NULL, n, 0.05f, 0.0f, 0.0f, 0.0f);
    }
}
