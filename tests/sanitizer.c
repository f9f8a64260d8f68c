/* Drives the CPU kernel over tensors of many sizes, each in memory of exactly its size, so that
 * AddressSanitizer or valgrind sees any byte read or written beside it. test_sanitizer.py runs it.
 */
#include <stdio.h>
#include <stdlib.h>

#include "native.c"

static uint32_t state = 1;
static uint32_t any(void) { return state = hash32(state + 0x9e3779b9u); }

/* Finite and not, huge, tiny and denormal. */
static float odd(void) {
    static const float odds[] = {0, -0.0f, 1e-45f, -1e-39f, 1e-30f, 1e18f, -1e19f, 3e38f, -1};
    uint32_t kind = any() % 32;
    if (kind < 9) return odds[kind];
    if (kind < 12) return float_of(any()); /* NaN and infinities are among these */
    return (float)(int32_t)any() * 0x1p-31f;
}

static size_t bytes_of(int type) { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }

/* `size` numbers: any, or at least 0 and finite for `least` = 0, or finite. */
static void *numbers_of(int64_t size, int type, int least, int finite) {
    char *memory = malloc((size_t)size * bytes_of(type));
    for (int64_t i = 0; i < size; i++) {
        float x = odd();
        if (finite && !(fabsf(x) < 1e18f)) x = 1;
        if (least == 0) x = fabsf(x);
        uint32_t u = bits_of(x);
        uint16_t half = (uint16_t)(u >> 16);
        uint8_t code = (uint8_t)(least == 0 ? any() % 256 : any() % 255 - 127);
        if (type == FLOAT32) memcpy(memory + 4 * i, &u, 4);
        if (type == BFLOAT16) memcpy(memory + 2 * i, &half, 2);
        if (type == INT8) memcpy(memory + i, &code, 1);
    }
    return memory;
}

int main(void) {
    static const int64_t sizes[] = {1,    0,    2,    3,     255,   256,   257,   1023,
                                    1024, 1025, 4097, 16383, 16384, 16385, 40000, 0};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    int64_t calls = 0, skipped = 0;
    for (int param_type = FLOAT32; param_type <= BFLOAT16; param_type++)
        for (int state_type = FLOAT32; state_type <= INT8; state_type++)
            for (int stochastic = 0; stochastic < 2; stochastic++)
                for (int threads = 1; threads <= 3; threads++) {
                    tensor tensors[COUNT];
                    const void *grads[COUNT];
                    int64_t pieces = 0;
                    for (int i = 0; i < COUNT; i++) {
                        int64_t n = sizes[i], blocks = (n + BLOCK - 1) / BLOCK;
                        tensor each = {numbers_of(n, param_type, -1, 1),
                                       numbers_of(n, state_type, -1, 1),
                                       numbers_of(n, state_type, 0, 1),
                                       numbers_of(state_type == INT8 ? blocks : 0, FLOAT32, 0, 1),
                                       numbers_of(state_type == INT8 ? blocks : 0, FLOAT32, 0, 1),
                                       n, pieces, any()};
                        tensors[i] = each;
                        pieces += (n + PIECE - 1) / PIECE;
                    }
                    for (int step = 0; step < 4; step++, calls++) {
                        float window = 1 + any() % 10;
                        numbers c = {step == 3 ? 1e30f : 1e-2f, (window - 1) / window, 1 / window,
                                     0.09f * window, 1e-8f, 1e-4f, any(), stochastic,
                                     stochastic};
                        for (int i = 0; i < COUNT; i++)
                            grads[i] = numbers_of(sizes[i], param_type, -1, step == 0);
                        skipped += dwmgrad_update(tensors, grads, COUNT, pieces, param_type,
                                                  state_type, &c, threads);
                        for (int i = 0; i < COUNT; i++) free((void *)grads[i]);
                    }
                    dwmgrad_update(tensors, grads, 0, 0, param_type, state_type, &(numbers){0},
                                   threads);
                    for (int i = 0; i < COUNT; i++) {
                        free(tensors[i].param), free(tensors[i].v), free(tensors[i].s);
                        free(tensors[i].v_scales), free(tensors[i].s_scales);
                    }
                }
    printf("%lld steps, an element skipped in %lld\n", (long long)calls, (long long)skipped);
    return 0;
}
