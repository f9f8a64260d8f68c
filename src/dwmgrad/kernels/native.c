/* The rule for all tensors of one pair of dtypes in one pass over memory, for CPUs.
 *
 * Compiled by setup.py, once for each instruction set, and loaded by native.py. No Python and no
 * PyTorch in here: it gets addresses and numbers. What it must compute is defined by reference.py and
 * low_bit.py.
 */
#ifdef _MSC_VER
#pragma fp_contract(off) /* as -ffp-contract=off: the same numbers on every CPU */
#define PREFETCH(address) ((void)0)
#else
#define PREFETCH(address) __builtin_prefetch(address)
#endif
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* The checksum of this file. */
const uint32_t dwmgrad_source = DWMGRAD_SOURCE;

enum { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };
enum { BLOCK = 256, CHUNK = 1024, PIECE = 16 * CHUNK };

typedef struct {
    float step_size, decay, keep, momentum, eps, shrink;
    uint32_t noise;
    int32_t stochastic_state, stochastic_params;
} numbers;

typedef struct {
    void *param, *v, *s;
    float *v_scales, *s_scales; /* of 8-bit buffers */
    int64_t size;               /* elements */
    int64_t first_piece;        /* pieces of the tensors before this one */
    uint64_t ordinal;
} tensor;

static inline uint32_t hash32(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

static inline uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

/* As bits, so that infinities and NaN are large. */
static uint32_t largest_of(int64_t n, const float *restrict x) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

/* Where `checks` is 0 all elements may be squared; that loop is the one that counts. */
static inline int rule(int64_t n, float *restrict p, const float *restrict g, float *restrict v,
                       float *restrict s, float most, const numbers *c, int checks) {
    const float step_size = c->step_size, decay = c->decay, keep = c->keep;
    const float momentum = c->momentum, eps = c->eps, shrink = c->shrink;
    int skipped = 0;
    for (int64_t i = 0; i < n; i++) {
        float si = s[i] * decay + keep * g[i] * g[i];
        if (checks && !(g[i] * g[i] <= FLT_MAX && si <= most)) {
            skipped = 1;
            continue;
        }
        float vi = v[i] * momentum + step_size * g[i] / (sqrtf(si) + eps);
        s[i] = si;
        v[i] = vi;
        p[i] = p[i] - shrink * p[i] - vi;
    }
    return skipped;
}

static void load_bfloat16(int64_t n, const uint16_t *restrict from, float *restrict to) {
    for (int64_t i = 0; i < n; i++) to[i] = float_of((uint32_t)from[i] << 16);
}

/* With random bits stochastically; else to the nearest, ties to even. */
static void store_bfloat16(int64_t n, const float *restrict from, uint16_t *restrict to,
                           const uint32_t *restrict random, int shift) {
    if (random)
        for (int64_t i = 0; i < n; i++)
            to[i] = (uint16_t)((bits_of(from[i]) + ((random[i] >> shift) & 0xffffu)) >> 16);
    else
        for (int64_t i = 0; i < n; i++) {
            uint32_t u = bits_of(from[i]);
            to[i] = (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
        }
}

static void load_v(int64_t n, const int8_t *restrict codes, float scale, float *restrict to) {
    for (int64_t i = 0; i < n; i++) {
        float x = codes[i] * (1.0f / 127);
        to[i] = x * fabsf(x) * scale;
    }
}

static void load_s(int64_t n, const uint8_t *restrict codes, float scale, float *restrict to) {
    for (int64_t i = 0; i < n; i++) {
        float x = codes[i] * (1.0f / 255);
        x = x * x;
        to[i] = x * x * scale;
    }
}

/* The largest magnitude, or more: the lowest level but 0 must be a normal number. */
static float scale_of(int64_t n, const float *restrict x, float least) {
    float largest = float_of(largest_of(n, x));
    return largest < least ? least : largest;
}

static float store_v(int64_t n, const float *restrict from, int8_t *restrict codes,
                     const uint32_t *restrict random) {
    float scale = scale_of(n, from, 0x1p-112f), inverse = 1 / scale;
    for (int64_t i = 0; i < n; i++) {
        float share = fabsf(from[i]) * inverse;
        float level = floorf(sqrtf(share) * 127);
        level = level < 126 ? level : 126;
        float low = level * (1.0f / 127), high = (level + 1) * (1.0f / 127);
        float chance = (float)(int32_t)(random[i] & 0xffffu) * (1.0f / 65536);
        low = low * low;
        high = high * high;
        level += share - low > chance * (high - low) ? 1.0f : 0.0f;
        codes[i] = (int8_t)(from[i] < 0 ? -level : level);
    }
    return scale;
}

static float store_s(int64_t n, const float *restrict from, uint8_t *restrict codes,
                     const uint32_t *restrict random) {
    /* 16, which the roots make 2: 1 / FLT_MAX is not a normal number */
    float scale = scale_of(n, from, 0x1p-94f), inverse = 16 / scale;
    for (int64_t i = 0; i < n; i++) {
        float code = sqrtf(sqrtf(from[i] * inverse)) * 127.5f;
        float level = floorf(code);
        level = level < 254 ? level : 254;
        float chance = (float)(int32_t)(random[i] >> 16) * (1.0f / 65536);
        level += code - level > chance ? 1.0f : 0.0f;
        float least = from[i] > 0 ? 1.0f : 0.0f; /* a step divides by its root */
        level = level < least ? least : level;
        codes[i] = (uint8_t)(int32_t)level;
    }
    return scale;
}

/* One chunk: into float32 where it is not, the rule, and back. All of it stays in the L1 cache. */
static int chunk(const tensor *t, const void *grad, int64_t at, int64_t n, int param_type,
                 int state_type, const numbers *c) {
    float wide_p[CHUNK], wide_g[CHUNK], wide_v[CHUNK], wide_s[CHUNK];
    uint32_t bits[CHUNK];
    float *p = wide_p, *v = wide_v, *s = wide_s;
    const float *g = wide_g;
    if (param_type == BFLOAT16) {
        load_bfloat16(n, (const uint16_t *)t->param + at, p);
        load_bfloat16(n, (const uint16_t *)grad + at, wide_g);
    } else {
        p = (float *)t->param + at, g = (const float *)grad + at;
    }
    if (state_type == FLOAT32) {
        v = (float *)t->v + at, s = (float *)t->s + at;
    } else if (state_type == BFLOAT16) {
        load_bfloat16(n, (const uint16_t *)t->v + at, v);
        load_bfloat16(n, (const uint16_t *)t->s + at, s);
    }
    for (int64_t i = 0; state_type == INT8 && i < n; i += BLOCK) {
        int64_t m = n - i < BLOCK ? n - i : BLOCK;
        load_v(m, (const int8_t *)t->v + at + i, t->v_scales[(at + i) / BLOCK], v + i);
        load_s(m, (const uint8_t *)t->s + at + i, t->s_scales[(at + i) / BLOCK], s + i);
    }
    /* bfloat16's largest number is smaller than float32's */
    float most = state_type == BFLOAT16 ? 0x1.fep127f : FLT_MAX;
    int checks = largest_of(n, g) >= 0x5f000000u; /* 2^63 */
    int skipped = checks ? rule(n, p, g, v, s, most, c, 1) : rule(n, p, g, v, s, most, c, 0);
    int stochastic_params = param_type == BFLOAT16 && c->stochastic_params;
    int stochastic_state = state_type == BFLOAT16 && c->stochastic_state;
    if (stochastic_params || stochastic_state || state_type == INT8) {
        uint32_t key = hash32(c->noise ^ hash32((uint32_t)t->ordinal)) + (uint32_t)at;
        for (int64_t i = 0; i < n; i++) bits[i] = hash32(key + (uint32_t)i);
    }
    if (state_type == BFLOAT16) {
        store_bfloat16(n, v, (uint16_t *)t->v + at, stochastic_state ? bits : NULL, 0);
        store_bfloat16(n, s, (uint16_t *)t->s + at, stochastic_state ? bits : NULL, 16);
    }
    for (int64_t i = 0; state_type == INT8 && i < n; i += BLOCK) {
        int64_t m = n - i < BLOCK ? n - i : BLOCK;
        t->v_scales[(at + i) / BLOCK] = store_v(m, v + i, (int8_t *)t->v + at + i, bits + i);
        t->s_scales[(at + i) / BLOCK] = store_s(m, s + i, (uint8_t *)t->s + at + i, bits + i);
    }
    for (int64_t i = 0; stochastic_params && i < n; i++) bits[i] = hash32(bits[i]);
    if (param_type == BFLOAT16)
        store_bfloat16(n, p, (uint16_t *)t->param + at, stochastic_params ? bits : NULL, 0);
    return skipped;
}

/* The tensor that a piece is of: the last one that begins at or before it. */
static int64_t tensor_of(int64_t piece, const tensor *tensors, int64_t count) {
    int64_t low = 0, high = count;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (tensors[middle].first_piece <= piece) low = middle;
        else high = middle;
    }
    return low;
}

/* Elements that cannot be squared are skipped. */
static inline float term(float g, float s, float decay, float keep, float eps) {
    float square = g * g;
    float ratio = square / (sqrtf(s * decay + keep * square) + eps);
    return square <= FLT_MAX ? ratio : 0.0f;
}

/* The sum of g²/(√s + ε) over a chunk, with the s that the step will make. Nothing is written. */
static double chunk_norm(const tensor *t, const void *grad, int64_t at, int64_t n, int param_type,
                         int state_type, const numbers *c) {
    enum { LANES = 16 };
    float wide_g[CHUNK], wide_s[CHUNK], sums[LANES] = {0};
    const float *g = wide_g, *s = wide_s;
    const float decay = c->decay, keep = c->keep, eps = c->eps;
    if (param_type == BFLOAT16) load_bfloat16(n, (const uint16_t *)grad + at, wide_g);
    else g = (const float *)grad + at;
    if (state_type == BFLOAT16) load_bfloat16(n, (const uint16_t *)t->s + at, wide_s);
    else if (state_type == FLOAT32) s = (const float *)t->s + at;
    for (int64_t i = 0; state_type == INT8 && i < n; i += BLOCK)
        load_s(n - i < BLOCK ? n - i : BLOCK, (const uint8_t *)t->s + at + i,
               t->s_scales[(at + i) / BLOCK], wide_s + i);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        /* the next chunk: processors do not fetch ahead across the end of a page */
        PREFETCH(g + i + CHUNK);
        PREFETCH(s + i + CHUNK);
        for (int64_t j = 0; j < LANES; j++) sums[j] += term(g[i + j], s[i + j], decay, keep, eps);
    }
    for (; i < n; i++) sums[i % LANES] += term(g[i], s[i], decay, keep, eps);
    double sum = 0;
    for (int j = 0; j < LANES; j++) sum += sums[j];
    return sum;
}

/* Writes for each piece the sum of `chunk_norm`, in an order that no number of threads changes. */
void dwmgrad_norms(const tensor *tensors, const void *const *grads, int64_t count, int64_t pieces,
                   int param_type, int state_type, const numbers *c, int threads, double *sums) {
#pragma omp parallel for schedule(static) num_threads(threads) if (pieces > 1)
    for (int64_t piece = 0; piece < pieces; piece++) {
        int64_t at_tensor = tensor_of(piece, tensors, count);
        const tensor *t = tensors + at_tensor;
        int64_t at = (piece - t->first_piece) * PIECE;
        int64_t end = at + PIECE < t->size ? at + PIECE : t->size;
        for (sums[piece] = 0; at < end; at += CHUNK)
            sums[piece] += chunk_norm(t, grads[at_tensor], at, end - at < CHUNK ? end - at : CHUNK,
                                      param_type, state_type, c);
    }
}

/* Returns whether an element was skipped. `pieces` is the number of pieces of all tensors. */
int dwmgrad_update(const tensor *tensors, const void *const *grads, int64_t count, int64_t pieces,
                   int param_type, int state_type, const numbers *c, int threads) {
    int skipped = 0;
#pragma omp parallel for schedule(static) reduction(| : skipped) num_threads(threads) if (pieces > 1)
    for (int64_t piece = 0; piece < pieces; piece++) {
        int64_t low = tensor_of(piece, tensors, count);
        const tensor *t = tensors + low;
        int64_t at = (piece - t->first_piece) * PIECE;
        int64_t end = at + PIECE < t->size ? at + PIECE : t->size;
        for (; at < end; at += CHUNK)
            skipped |= chunk(t, grads[low], at, end - at < CHUNK ? end - at : CHUNK, param_type,
                             state_type, c);
    }
    return skipped;
}
