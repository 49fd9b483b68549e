#include "mh_code.h"

#include <string.h>

#include "mh_math.h"
#include "mh_rng.h"

#define SKIP 0xffffffffu /* in the place of a number that doesn't travel; no finite number has these bits */
#define STAGE 32

enum { WAY_ALL = 0, WAY_BITMAP = 1, WAY_SEEDED = 2, WAY_GAPS = 3 };

int mh_code_read(mh_code *c, int32_t setting) {
    uint32_t word = (uint32_t)setting;
    c->value = word & 15u;
    c->select = word >> 4 & 15u;
    c->is_delta = word >> 8 & 1u;
    c->feeds_back = word >> 9 & 1u;
    c->level = (uint16_t)(word >> 12 & 0xffffu);
    if (word >> 28 || word >> 10 & 3u || c->value > MH_CODE_SIGN || c->select > MH_CODE_RANDK) return -1;
    if (c->value == MH_CODE_QUANTISE) return c->level >= 2 && c->level <= 8 ? 0 : -1;
    if (c->value == MH_CODE_QSGD) return c->level >= 1 && c->level <= MH_CODE_MAX_LEVELS ? 0 : -1;
    return c->level ? -1 : 0;
}

/* Words of a stream, one after the other. */
typedef struct {
    uint64_t seed;
    uint32_t counter[4], words[4], at;
} stream;

static void stream_open(stream *s, uint64_t seed, uint32_t round, uint32_t device, uint32_t use) {
    s->seed = seed;
    s->counter[0] = 0, s->counter[1] = round, s->counter[2] = device, s->counter[3] = use;
    s->at = 4;
}

static uint32_t stream_next(stream *s) {
    if (s->at == 4) {
        mh_philox(s->counter, s->seed, s->words);
        s->counter[0]++;
        s->at = 0;
    }
    return s->words[s->at++];
}

/* Which numbers travel, asked for each of them in order. */
typedef struct {
    uint8_t select;
    uint32_t num, kept;
    uint32_t border, equal;  /* topk: the size of the last that travels, and how many of that size do */
    uint32_t run, next, length; /* randk: the run under way, its place, its length */
    stream places;
} chooser;

static void run_next(chooser *c) {
    uint32_t first = (uint32_t)((uint64_t)c->run * c->num / c->kept);
    uint32_t end = (uint32_t)((uint64_t)(c->run + 1) * c->num / c->kept);
    c->length = end - first;
    c->next = first + (uint32_t)((uint64_t)stream_next(&c->places) * c->length >> 32);
    c->run++;
}

static uint32_t size_bits(float x) { return mh_bits_f32(x) & 0x7fffffffu; }

static int travels(chooser *c, uint32_t place, float x) {
    if (c->select == MH_CODE_ALL) return 1;
    if (c->select == MH_CODE_RANDK) return place == c->next;
    if (size_bits(x) != c->border) return size_bits(x) > c->border;
    if (!c->equal) return 0;
    c->equal--;
    return 1;
}

/* Behind a randk number that travelled: on to the next run, if there is one; else no later place is `next`. */
static void passed(chooser *c) {
    if (c->select == MH_CODE_RANDK && c->run < c->kept) run_next(c);
}

static void chooser_reset(chooser *c, uint64_t seed, uint32_t equal) {
    c->equal = equal;
    if (c->select != MH_CODE_RANDK) return;
    stream_open(&c->places, seed, 0, 0, 0);
    c->run = 0;
    run_next(c);
}

static uint32_t count_above(const mh_numbers *n, uint32_t least) {
    uint32_t p, k, num, count = 0;
    for (p = 0; p < n->parts; p++) {
        const float *x = n->at(n->self, p, &num);
        for (k = 0; k < num; k++) count += size_bits(x[k]) >= least;
    }
    return count;
}

/* The share of the numbers that travels, rounded half to even and at least one; as round(share * num). */
static uint32_t kept_of(double share, uint32_t num) {
    double wanted = share * (double)num, rest;
    uint32_t whole = wanted >= (double)num ? num : wanted > 0.0 ? (uint32_t)wanted : 0;
    rest = wanted - (double)whole;
    if (whole < num && (rest > 0.5 || (rest == 0.5 && whole & 1u))) whole++;
    return whole ? whole : 1;
}

static float uniform(stream *s) { return (float)(stream_next(s) >> 8) * (1.0f / 16777216.0f); }

static uint32_t length_of(uint32_t level) { /* bits behind the highest */
    uint32_t bits = 0;
    while (level >> 1 >> bits) bits++;
    return bits;
}

/* Where a sum of squares or sizes comes from. */
typedef struct {
    float low, high;
    double sizes, squares;
} found;

static float magnitude(float x) { return mh_from_bits_f32(size_bits(x)); }

static void measure(const mh_code *c, const mh_numbers *n, chooser *pick, uint32_t equal, uint64_t seed, found *f) {
    uint32_t p, k, num, i, pass;
    f->low = mh_from_bits_f32(0x7f7fffffu), f->high = 0.0f, f->sizes = f->squares = 0.0;
    for (pass = 0; pass < 2; pass++) { /* squares are of shares of the largest */
        if (pass && (c->value != MH_CODE_QSGD || !(f->high > 0.0f))) break;
        chooser_reset(pick, seed, equal);
        for (p = 0, i = 0; p < n->parts; p++) {
            const float *x = n->at(n->self, p, &num);
            for (k = 0; k < num; k++, i++) {
                float size;
                if (!travels(pick, i, x[k])) continue;
                size = magnitude(x[k]);
                if (pick->select == MH_CODE_RANDK && !c->feeds_back) size = size * (float)pick->length;
                if (pass) {
                    double share = (double)(size / f->high);
                    f->squares += share * share;
                } else {
                    f->low = size < f->low ? size : f->low;
                    f->high = size > f->high ? size : f->high;
                    f->sizes += (double)size;
                }
                passed(pick);
            }
        }
    }
}

static void put_f32(uint8_t *to, float x) { memcpy(to, &x, 4); }

/* The numbers of a scale: what each code stands for. */
typedef struct {
    float low, high, step, norm, scale, levels;
    uint32_t top;
} scale;

static float value_of(uint8_t value, const scale *s, uint32_t code) {
    float size;
    if (value == MH_CODE_QUANTISE) {
        size = (float)(code >> 1) * s->step;
        size = s->low + size;
        if (size > s->high) size = s->high;
    } else if (value == MH_CODE_QSGD) {
        size = (float)(code >> 1) / s->levels;
        size = s->norm * size;
    } else {
        size = s->scale;
    }
    return code & 1u ? -size : size;
}

static uint32_t code_of(uint8_t value, const scale *s, float x, stream *draws) {
    uint32_t negative = x < 0.0f, level;
    float place = 0.0f;
    if (value == MH_CODE_SIGN) return negative;
    if (value == MH_CODE_QUANTISE) {
        if (s->step > 0.0f) place = (magnitude(x) - s->low) / s->step;
    } else if (s->norm > 0.0f) {
        place = magnitude(x) / s->norm;
        place = place * s->levels;
    }
    place = place + uniform(draws);
    level = (uint32_t)place;
    if (level > s->top) level = s->top;
    return level << 1 | negative;
}

static int scale_of(const mh_code *c, const found *f, uint32_t travelling, scale *s, mh_made *made) {
    memset(s, 0, sizeof *s);
    made->head_bytes = 0;
    if (c->value == MH_CODE_QUANTISE) {
        s->low = f->low, s->high = f->high, s->top = (1u << (c->level - 1u)) - 1u;
        s->step = (s->high - s->low) / (float)s->top;
        made->head[0] = (uint8_t)c->level;
        put_f32(made->head + 1, s->low);
        put_f32(made->head + 5, s->high);
        made->head_bytes = 9;
    } else if (c->value == MH_CODE_QSGD) {
        s->levels = (float)c->level, s->top = c->level;
        s->norm = f->high * mh_sqrt_f32((float)f->squares);
        if (!(s->norm - s->norm == 0.0f)) return -1;
        made->head[0] = (uint8_t)c->level, made->head[1] = (uint8_t)(c->level >> 8);
        put_f32(made->head + 2, s->norm);
        made->head_bytes = 6;
    } else if (c->value == MH_CODE_SIGN) {
        s->scale = (float)(f->sizes / (double)travelling);
        put_f32(made->head, s->scale);
        made->head_bytes = 4;
    }
    return 0;
}

static uint32_t bytes_of(uint64_t bits) { return (uint32_t)((bits + 7) / 8); }

/* How the places are told, and in how many bytes. high: [MH_CODE_MAX_LOW + 1] sums of the gaps' high parts. */
static uint32_t tell_places(const mh_code *c, const uint32_t *high, mh_made *made) {
    uint32_t low, best = 0, least = SKIP;
    if (c->select == MH_CODE_RANDK && c->value != MH_CODE_QSGD) {
        made->how = WAY_SEEDED;
        return 8;
    }
    if (made->kept == made->num) {
        made->how = WAY_ALL;
        return 0;
    }
    for (low = 0; low <= MH_CODE_MAX_LOW; low++) {
        uint32_t bytes = bytes_of((uint64_t)high[low] + made->kept) + bytes_of((uint64_t)low * made->kept);
        if (bytes < least) least = bytes, best = low;
    }
    if (bytes_of(made->num) <= least) {
        made->how = WAY_BITMAP;
        return bytes_of(made->num);
    }
    made->how = (uint8_t)(WAY_GAPS + best);
    return least;
}

int mh_code_make(const mh_code *c, const mh_numbers *n, mh_made *made) {
    uint32_t high[MH_CODE_MAX_LOW + 1] = {0}, p, k, i, num, equal = 0, last = 0, low, travelling;
    uint64_t lengths = 0;
    chooser pick;
    stream draws;
    scale s;
    found f;
    memset(made, 0, sizeof *made);
    for (p = 0; p < n->parts; p++) {
        const float *x = n->at(n->self, p, &num);
        for (k = 0; k < num; k++)
            if (!(x[k] - x[k] == 0.0f)) return -1;
        made->num += num;
    }
    made->value = c->value;
    pick.select = c->select, pick.num = made->num;
    pick.kept = travelling = c->select == MH_CODE_ALL ? made->num : kept_of(c->share, made->num);
    if (c->select == MH_CODE_TOPK) { /* the largest border that enough numbers reach, bit by bit */
        uint32_t bit;
        pick.border = 0;
        for (bit = 0x40000000u; bit; bit >>= 1)
            if (count_above(n, pick.border | bit) >= pick.kept) pick.border |= bit;
        equal = pick.kept - count_above(n, pick.border + 1);
    }
    if (c->select == MH_CODE_RANDK) {
        uint32_t low_word;
        stream_open(&draws, c->seed, c->round, c->device, c->use | 1u << 8);
        low_word = stream_next(&draws);
        made->seed = (uint64_t)stream_next(&draws) << 32 | low_word;
    }
    measure(c, n, &pick, equal, made->seed, &f);
    if (c->value != MH_CODE_PLAIN && !(f.high - f.high == 0.0f)) return -1;
    if (scale_of(c, &f, travelling, &s, made)) return -1;
    stream_open(&draws, c->seed, c->round, c->device, c->use);
    chooser_reset(&pick, made->seed, equal);
    for (p = 0, i = 0; p < n->parts; p++) {
        float *x = n->at(n->self, p, &num);
        for (k = 0; k < num; k++, i++) {
            uint32_t code = SKIP;
            float given = x[k], sent = 0.0f;
            if (travels(&pick, i, given)) {
                if (c->select == MH_CODE_RANDK && !c->feeds_back) given = given * (float)pick.length;
                passed(&pick);
                if (c->value == MH_CODE_PLAIN) {
                    if (!(given - given == 0.0f)) return -1;
                    code = mh_bits_f32(given), sent = given;
                } else {
                    code = code_of(c->value, &s, given, &draws);
                    sent = value_of(c->value, &s, code);
                    if (c->value == MH_CODE_QSGD && code < 2) code = SKIP;
                }
            }
            if (n->owed) n->owed[i] = x[k] - sent;
            x[k] = mh_from_bits_f32(code);
            if (code == SKIP) continue;
            if (c->select == MH_CODE_TOPK || c->value == MH_CODE_QSGD)
                for (low = 0; low <= MH_CODE_MAX_LOW; low++) high[low] += (i - last) >> low;
            last = i + 1;
            made->kept++;
            if (c->value == MH_CODE_QSGD) lengths += length_of(code >> 1);
        }
    }
    made->bytes = MH_CODE_HEAD + made->head_bytes + tell_places(c, high, made);
    if (c->value == MH_CODE_PLAIN) made->bytes += 4 * made->kept;
    if (c->value == MH_CODE_QUANTISE) made->bytes += bytes_of((uint64_t)c->level * made->kept);
    if (c->value == MH_CODE_SIGN) made->bytes += bytes_of(made->kept);
    if (c->value == MH_CODE_QSGD)
        made->bytes += bytes_of(made->kept) + bytes_of(lengths + made->kept) + bytes_of(lengths);
    return 0;
}

/* Bits on their way out, the least of each byte first. */
typedef struct {
    mh_code_sink sink;
    void *to;
    uint8_t stage[STAGE];
    uint32_t at, bits, held; /* whole bytes in the stage; bits held beside them, and how many */
    int status;
} writer;

static void put_byte(writer *w, uint8_t byte) {
    w->stage[w->at++] = byte;
    if (w->at < STAGE) return;
    if (!w->status) w->status = w->sink(w->to, w->stage, w->at);
    w->at = 0;
}

static void put_bits(writer *w, uint32_t value, uint32_t num) { /* num <= 24 */
    w->bits |= value << w->held;
    for (w->held += num; w->held >= 8; w->held -= 8, w->bits >>= 8) put_byte(w, (uint8_t)w->bits);
}

static void put_unary(writer *w, uint32_t value) {
    for (; value >= 16; value -= 16) put_bits(w, 0xffffu, 16);
    put_bits(w, (1u << value) - 1u, value + 1u);
}

static void fill_up(writer *w) {
    if (w->held) put_byte(w, (uint8_t)w->bits);
    w->bits = w->held = 0;
}

enum part { GAPS_HIGH, GAPS_LOW, BITMAP, NUMBERS, SIGNS, LENGTHS, RESTS };

static void put_part(writer *w, const mh_numbers *n, const mh_made *made, enum part what) {
    uint32_t p, k, i, num, last = 0, low = made->how >= WAY_GAPS ? made->how - WAY_GAPS : 0;
    for (p = 0, i = 0; p < n->parts; p++) {
        const float *x = n->at(n->self, p, &num);
        for (k = 0; k < num; k++, i++) {
            uint32_t code = mh_bits_f32(x[k]), length, byte;
            if (what == BITMAP) put_bits(w, code != SKIP, 1);
            if (code == SKIP || what == BITMAP) continue;
            if (what == GAPS_HIGH) put_unary(w, (i - last) >> low);
            if (what == GAPS_LOW) put_bits(w, (i - last) & ((1u << low) - 1u), low);
            last = i + 1;
            if (what == SIGNS) put_bits(w, code & 1u, 1);
            if (what == NUMBERS && made->value == MH_CODE_QUANTISE) put_bits(w, code, made->head[0]);
            if (what == NUMBERS && made->value == MH_CODE_PLAIN)
                for (byte = 0; byte < 4; byte++) put_bits(w, code >> 8 * byte & 0xffu, 8);
            if (what != LENGTHS && what != RESTS) continue;
            length = length_of(code >> 1);
            if (what == LENGTHS)
                put_unary(w, length);
            else
                put_bits(w, (code >> 1) & ((1u << length) - 1u), length);
        }
    }
    fill_up(w);
}

int mh_code_write(const mh_numbers *n, const mh_made *made, mh_code_sink sink, void *to) {
    writer w;
    uint32_t i;
    memset(&w, 0, sizeof w);
    w.sink = sink, w.to = to;
    put_byte(&w, 0);
    put_byte(&w, made->value);
    put_byte(&w, made->how);
    for (i = 0; i < 4; i++) put_byte(&w, (uint8_t)(made->kept >> 8 * i));
    for (i = 0; i < made->head_bytes; i++) put_byte(&w, made->head[i]);
    for (i = 0; made->how == WAY_SEEDED && i < 8; i++) put_byte(&w, (uint8_t)(made->seed >> 8 * i));
    if (made->how == WAY_BITMAP) put_part(&w, n, made, BITMAP);
    if (made->how >= WAY_GAPS) {
        put_part(&w, n, made, GAPS_HIGH);
        put_part(&w, n, made, GAPS_LOW);
    }
    if (made->value == MH_CODE_PLAIN || made->value == MH_CODE_QUANTISE) put_part(&w, n, made, NUMBERS);
    if (made->value == MH_CODE_SIGN || made->value == MH_CODE_QSGD) put_part(&w, n, made, SIGNS);
    if (made->value == MH_CODE_QSGD) {
        put_part(&w, n, made, LENGTHS);
        put_part(&w, n, made, RESTS);
    }
    if (w.at && !w.status) w.status = sink(to, w.stage, w.at);
    return w.status;
}

/* Bits on their way in. */
typedef struct {
    mh_code_source source;
    void *from;
    uint32_t left; /* bytes that aren't in the stage yet */
    uint8_t stage[STAGE];
    uint32_t at, end, bits, held;
    int status;
} reader;

static uint32_t get_byte(reader *r) {
    if (r->at == r->end) {
        r->at = 0;
        r->end = r->left < STAGE ? r->left : STAGE;
        if (!r->end || r->status || r->source(r->from, r->stage, r->end)) {
            r->status = -1;
            r->end = 0;
            return 0;
        }
        r->left -= r->end;
    }
    return r->stage[r->at++];
}

static uint32_t get_bits(reader *r, uint32_t num) { /* num <= 24 */
    uint32_t value;
    for (; r->held < num && !r->status; r->held += 8) r->bits |= get_byte(r) << r->held;
    if (r->status) return 0;
    value = r->bits & ((1u << num) - 1u);
    r->bits >>= num;
    r->held -= num;
    return value;
}

static uint32_t get_unary(reader *r, uint32_t most) {
    uint32_t value = 0;
    while (get_bits(r, 1))
        if (++value > most) r->status = -1;
    return value;
}

static void align(reader *r) {
    if (r->bits) r->status = -1;
    r->bits = r->held = 0;
}

static float get_f32(reader *r) {
    uint32_t bits = 0, byte;
    for (byte = 0; byte < 4; byte++) bits |= get_byte(r) << 8 * byte;
    if ((bits & 0x7f800000u) == 0x7f800000u) {
        r->status = -1;
        return 0.0f;
    }
    return mh_from_bits_f32(bits);
}

static void get_scale(reader *r, uint8_t value, scale *s) {
    uint32_t level = 0;
    memset(s, 0, sizeof *s);
    if (value == MH_CODE_QUANTISE) {
        level = get_byte(r);
        s->low = get_f32(r);
        s->high = get_f32(r);
        if (level < 2 || level > 8 || s->low < 0.0f || s->low > s->high) {
            r->status = -1;
            return;
        }
        s->top = level;
        s->step = (s->high - s->low) / (float)((1u << (level - 1u)) - 1u);
    } else if (value == MH_CODE_QSGD) {
        level = get_byte(r);
        level |= get_byte(r) << 8;
        s->norm = get_f32(r);
        if (level < 1 || level > MH_CODE_MAX_LEVELS || s->norm < 0.0f) r->status = -1;
        s->top = level;
        s->levels = (float)level;
    } else if (value == MH_CODE_SIGN) {
        s->scale = get_f32(r);
        if (s->scale < 0.0f) r->status = -1;
    }
}

static void get_places(reader *r, uint32_t how, uint32_t kept, uint32_t num, uint32_t *places) {
    uint32_t k, at = 0, low = how - WAY_GAPS;
    chooser pick;
    if (how == WAY_ALL) {
        for (k = 0; k < kept; k++) places[k] = k;
    } else if (how == WAY_BITMAP) {
        for (k = 0; k < num; k++) {
            if (!get_bits(r, 1)) continue;
            if (at < kept) places[at] = k;
            at++;
        }
        if (at != kept) r->status = -1;
        align(r);
    } else if (how == WAY_SEEDED) {
        uint64_t seed = 0;
        for (k = 0; k < 8; k++) seed |= (uint64_t)get_byte(r) << 8 * k;
        pick.select = MH_CODE_RANDK, pick.num = num, pick.kept = kept;
        if (!kept || r->status) return;
        chooser_reset(&pick, seed, 0);
        for (k = 0; k < kept; k++) {
            places[k] = pick.next;
            passed(&pick);
        }
    } else {
        for (k = 0; k < kept && !r->status; k++) places[k] = get_unary(r, num >> low);
        align(r);
        for (k = 0; k < kept && !r->status; k++) {
            at += places[k] << low | get_bits(r, low);
            places[k] = at++;
            if (places[k] >= num) r->status = -1;
        }
        align(r);
    }
}

#define PLACE_BITS 26 /* of an entry of the places; then a sign, then a level's length */

static void get_levels(reader *r, uint32_t kept, uint32_t *places) {
    uint32_t k;
    for (k = 0; k < kept; k++) places[k] |= get_bits(r, 1) << PLACE_BITS;
    align(r);
    for (k = 0; k < kept && !r->status; k++) places[k] |= get_unary(r, 12) << (PLACE_BITS + 1);
    align(r);
}

static float get_number(reader *r, uint8_t value, const scale *s, uint32_t place) {
    uint32_t length, level;
    if (value == MH_CODE_PLAIN) return get_f32(r);
    if (value == MH_CODE_SIGN) return value_of(value, s, get_bits(r, 1));
    if (value == MH_CODE_QUANTISE) return value_of(value, s, get_bits(r, s->top));
    length = place >> (PLACE_BITS + 1) & 15u;
    level = 1u << length | get_bits(r, length);
    if (level > s->top) r->status = -1;
    return value_of(value, s, level << 1 | (place >> PLACE_BITS & 1u));
}

int mh_code_add(const mh_numbers *n, uint32_t num_bytes, uint32_t *places, uint32_t room, mh_code_source source,
                void *from) {
    uint32_t num = 0, total = 0, kept = 0, value, how, p, k, i, listed;
    reader r;
    scale s;
    float *x = 0;
    memset(&r, 0, sizeof r);
    r.source = source, r.from = from, r.left = num_bytes;
    for (p = 0; p < n->parts; p++) {
        n->at(n->self, p, &num);
        total += num;
    }
    if (get_byte(&r) != 0) r.status = -1;
    value = get_byte(&r);
    how = get_byte(&r);
    for (i = 0; i < 4; i++) kept |= get_byte(&r) << 8 * i;
    if (value > MH_CODE_SIGN || how > WAY_GAPS + MH_CODE_MAX_LOW || kept > total || total >> PLACE_BITS) return -1;
    if (how == WAY_ALL && kept != total) return -1;
    get_scale(&r, (uint8_t)value, &s);
    if (r.status) return -1;
    listed = how != WAY_ALL || value == MH_CODE_QSGD;
    if (listed && kept > room) return -2;
    if (listed) get_places(&r, how, kept, total, places);
    if (value == MH_CODE_QSGD) get_levels(&r, kept, places);
    for (k = 0, p = 0, i = 0, num = 0; k < kept && !r.status; k++) {
        uint32_t place = listed ? places[k] & ((1u << PLACE_BITS) - 1u) : k;
        float more = get_number(&r, (uint8_t)value, &s, listed ? places[k] : 0);
        for (; p < n->parts && place >= i + num; p++) {
            i += num;
            x = n->at(n->self, p, &num);
        }
        if (!r.status) x[place - i] = x[place - i] + more;
    }
    align(&r);
    return r.status || r.left || r.at != r.end ? -1 : 0;
}
