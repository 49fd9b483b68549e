/* Spoils a blob in many ways, makes its CRC right again, and runs whatever the check lets through: built with checks of
   addresses, it ends with an error at the first byte read or written outside of the blob or the arena.

   hostile BLOB NUM SEED: prints how many were refused and how many ran. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mh_crc32.h"
#include "mh_model.h"

static uint32_t state;

static uint32_t draw(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % below;
}

static void put(uint8_t *at, uint32_t bytes, uint32_t value) {
    uint32_t i;
    for (i = 0; i < bytes; i++) at[i] = (uint8_t)(value >> 8 * i);
}

static uint32_t spoilt(uint32_t old) {
    switch (draw(8)) {
    case 0: return 0;
    case 1: return 0xffffffffu;
    case 2: return old + 1;
    case 3: return old - 1;
    case 4: return old + 16;
    case 5: return old ^ 1u << draw(32);
    case 6: return draw(64);
    default: return draw(0x7fffffff);
    }
}

/* One field of the header's counts and offsets, of a table, or of what a plan points to. */
static void spoil(uint8_t *blob, const uint8_t *whole, uint32_t bytes) {
    mh_blob head;
    mh_plan plan;
    uint32_t at, size = 1u << draw(3), old = 0;
    memcpy(&head, whole, sizeof head);
    switch (draw(6)) {
    case 0: at = 16 + draw(sizeof head - 16); break;
    case 1: at = head.values_at + draw(head.num_values * (uint32_t)sizeof(mh_value)); break;
    case 2: at = head.layers_at + draw(head.num_layers * (uint32_t)sizeof(mh_layer)); break;
    case 3: at = head.params_at + draw(head.num_params * (uint32_t)sizeof(mh_param) + 1); break;
    case 4: at = head.plans_at + draw(head.num_plans * (uint32_t)sizeof(mh_plan)); break;
    default:
        memcpy(&plan, whole + head.plans_at + draw(head.num_plans) * sizeof plan, sizeof plan);
        switch (draw(4)) {
        case 0: at = plan.steps_at + draw(head.num_layers); break;
        case 1: at = plan.values_at + draw(4u * head.num_values); break;
        case 2: at = plan.grads_at + draw(4u * head.num_values); break;
        default: at = plan.sums_at + draw(4u * head.num_params + 1); break;
        }
        if (at >= bytes) at = 16;
        break;
    }
    at -= at % size;
    if (at < 16 || at + size > bytes) return;
    memcpy(&old, blob + at, size);
    put(blob + at, size, spoilt(old));
}

static void run(const uint8_t *blob) {
    const mh_blob *head = (const void *)blob;
    uint8_t *arena = malloc(head->arena_bytes ? head->arena_bytes : 1);
    static const mh_sgd how = {0.1f, 0.0f, 0.01f, 0.0f};
    mh_model m;
    uint32_t i, num;
    memset(arena, 0x3c, head->arena_bytes);
    mh_model_open(&m, blob, arena);
    mh_model_reset(&m);
    for (i = 0; i < head->num_plans; i++) {
        const mh_plan *p = &m.plans[i];
        uint16_t first = p->kind == MH_PLAN_STORE ? 0 : head->stored_value;
        const mh_value *in = &m.values[mh_model_places(&m, p, first) ? first : m.layers[0].out];
        const mh_value *out = &m.values[p->kind == MH_PLAN_STORE ? head->stored_value : mh_model_output(&m)];
        memset(mh_model_value(&m, p, (uint16_t)(in - m.values)), 1, mh_value_elements(in) * (in->dtype == MH_S8 ? 1 : 4));
        mh_model_forward(&m, p);
        memset(mh_model_value(&m, p, (uint16_t)(out - m.values)), 2, mh_value_elements(out) * (out->dtype == MH_S8 ? 1 : 4));
        if (p->kind != MH_PLAN_TRAIN && p->kind != MH_PLAN_BACKWARD) continue;
        num = mh_value_elements(out);
        mh_model_zero_sums(&m, p);
        memset(mh_model_gradient(&m, p), 0, num * 4);
        if (p->kind == MH_PLAN_TRAIN) memset(mh_model_scratch(&m, p), 0, 8u * head->num_classes);
        mh_model_backward(&m, p);
        mh_model_step(&m, p, &how);
    }
    free(arena);
}

int main(int argc, char **argv) {
    uint32_t bytes, i, k, ran = 0, num;
    uint8_t *whole;
    FILE *file;
    if (argc != 4 || (file = fopen(argv[1], "rb")) == NULL) return 2;
    whole = malloc(1 << 20);
    bytes = (uint32_t)fread(whole, 1, 1 << 20, file);
    fclose(file);
    num = (uint32_t)strtoul(argv[2], NULL, 10);
    state = (uint32_t)strtoul(argv[3], NULL, 10) | 1;
    for (i = 0; i < num; i++) {
        uint8_t *blob = malloc(bytes); /* of its exact size, so that one byte too far is found */
        memcpy(blob, whole, bytes);
        for (k = i ? 1 + draw(3) : 0; k > 0; k--) spoil(blob, whole, bytes);
        put(blob + 12, 4, 0);
        put(blob + 12, 4, mh_crc32(0, blob, bytes));
        if (mh_model_check(blob, bytes, 1 << 16) == MH_OK) {
            run(blob);
            ran++;
        } else if (i == 0) {
            return 3; /* the sound one was refused */
        }
        free(blob);
    }
    free(whole);
    printf("%u %u\n", num - ran, ran);
    return 0;
}
