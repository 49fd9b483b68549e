#include "kernel.h"

void mk_norm_forward(mk_thread *t, int64_t layer, int64_t num)
{
    (void)t, (void)layer, (void)num;
}

void mk_norm_backward(mk_thread *t, int64_t layer, int64_t num)
{
    (void)t, (void)layer, (void)num;
}
