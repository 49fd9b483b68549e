/* Sends mutated frames, packets and bytes to a device, for a sanitizer to watch.

       fuzz SEED FRAMES SECONDS ARENA_BYTES CORPUS [BLOB]

   CORPUS holds frames, each behind its length as u32: a script that makes a fresh device ready and uses each of its ops;
   its last frame must be answerable at all times. BLOB is a sound model blob, to be mutated and loaded.

   Same seed, same bytes. It checks what a sanitizer can't: everything that the device sends must be whole (stuffing, CRC,
   seal, counters, frame), and after all of it the device must still answer its server. A case that takes over 20 s is a
   hang. Epochs and steps are bounded to 3 behind the mutator: a server that asks for 2^31 of them gets what it asked for.

   The mutated frame is most often sealed well, so that what lies behind the CRC and the seal is reached. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"
#include "mh_aead.h"
#include "mh_blob.h"
#include "mh_cobs.h"
#include "mh_crc32.h"
#include "mh_frame.h"
#include "mh_link.h"

enum { MAX_FRAME = 1 << 16, MAX_FRAMES = 256, MAX_FIELDS = 512, RESTART = 4096, BLOB_TURN = 24, SOUND_TURN = 64 };

typedef struct {
    uint8_t data[MAX_FRAME];
    uint32_t num;
} bytes;

static uint64_t state;
static uint8_t key[32];
static mh_port port;
static uint8_t *in, *out;
static uint32_t in_at, in_end, in_max, out_end, out_max;
static bytes corpus[MAX_FRAMES], blob, frame, hostile;
static uint32_t num_corpus;
static uint64_t num_frames, num_replies, num_refusals, num_blobs, num_blobs_taken, num_offers, num_sealed;

/* The server's end of the session. */
static struct {
    uint32_t number, sent, received;
    uint8_t key[32];
} session;

static void fail(const char *why) {
    fprintf(stderr, "fuzz: %s (frame %llu)\n", why, (unsigned long long)num_frames);
    abort();
}

static uint32_t draw(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)(state * 0x2545f4914f6cdd1dull >> 32);
}

static uint32_t below(uint32_t n) { return (uint32_t)((uint64_t)draw() * n >> 32); }

/* --- the port */

static int32_t read_some(void *self, uint8_t *to, uint32_t max) {
    uint32_t num = in_end - in_at;
    (void)self;
    if (num > max) num = max;
    memcpy(to, in + in_at, num);
    in_at += num;
    return (int32_t)num;
}

static int32_t write_all(void *self, const uint8_t *from, uint32_t num) {
    (void)self;
    if (out_end + num > out_max) {
        out_max = 2 * (out_end + num);
        if (out_max > 1u << 28) fail("a reply without end");
        out = realloc(out, out_max);
    }
    memcpy(out + out_end, from, num);
    out_end += num;
    return 0;
}

static uint32_t ticks(void *self) {
    (void)self;
    return 0;
}

static uint32_t next_random(void *self) {
    (void)self;
    return draw();
}

static int is_flash(const uint8_t *at, uint32_t num) {
    for (int i = 0; i < 2; i++)
        if (at >= port.slot[i] && at <= port.slot[i] + port.slot_bytes && num <= port.slot[i] + port.slot_bytes - at)
            return 1;
    return at >= port.store && at <= port.store + port.store_bytes && num <= port.store + port.store_bytes - at;
}

static int32_t erase(void *self, uint8_t *at, uint32_t num) {
    (void)self;
    if (!is_flash(at, num)) fail("erased what isn't flash");
    memset(at, 0xff, num);
    return 0;
}

static int32_t program(void *self, uint8_t *at, const uint8_t *from, uint32_t num) {
    (void)self;
    if (!is_flash(at, num)) fail("wrote to what isn't flash");
    if (((uintptr_t)at | num) & 3) fail("wrote to flash unaligned");
    for (uint32_t i = 0; i < num; i++) at[i] &= from[i];
    return 0;
}

static uint32_t stack_peak(void *self) {
    (void)self;
    return 0;
}

static void *aligned(uint32_t num) {
    void *at = NULL;
    if (posix_memalign(&at, 16, num)) fail("no memory");
    memset(at, 0xff, num);
    return at;
}

/* --- the server's end: packets out */

static void append(const uint8_t *from, uint32_t num) {
    if (in_end + num > in_max) {
        in_max = 2 * (in_end + num);
        in = realloc(in, in_max);
    }
    memcpy(in + in_end, from, num);
    in_end += num;
}

static void append_stuffed(const uint8_t *packet, uint32_t num) {
    static uint8_t stuffed[2 * MH_PACKET_MAX + 64];
    append((const uint8_t *)"", 1);
    append(stuffed, mh_cobs_encode(packet, num, stuffed));
    append((const uint8_t *)"", 1);
}

static void set_u32(uint8_t *to, uint32_t value) { memcpy(to, &value, 4); }

static uint32_t get_u32(const uint8_t *from) {
    uint32_t value;
    memcpy(&value, from, 4);
    return value;
}

static uint32_t with_crc(uint8_t *packet, uint32_t num) {
    set_u32(packet + num, mh_crc32(0, packet, num));
    return num + 4;
}

static uint32_t seal(uint8_t *packet, uint8_t kind, uint8_t flags, const uint8_t *body, uint32_t num) {
    uint8_t nonce[12] = {0};
    uint16_t length = (uint16_t)num;
    packet[0] = kind;
    packet[1] = flags;
    memcpy(packet + 2, &length, 2);
    set_u32(packet + 4, kind == 0x11 ? 0 : session.number);
    set_u32(packet + 8, kind == 0x11 ? 0 : ++session.sent);
    memcpy(packet + 12, body, num);
    if (kind == 0x11) return 12 + num;
    num_sealed++;
    memcpy(nonce + 4, packet + 4, 8);
    mh_aead_seal(session.key, nonce, packet, 12, packet + 12, num, packet + 12 + num);
    return 12 + num + 16;
}

/* The packets of a message, spoiled now and then if `spoils`. */
static void append_message(const uint8_t *message, uint32_t num, int spoils) {
    static uint8_t packet[MH_PACKET_MAX + 16], last[MH_PACKET_MAX + 16];
    uint32_t num_last = 0;
    uint32_t size = spoils && below(3) == 0 ? 1 + below(MH_PACKET_BODY) : MH_PACKET_BODY;
    for (uint32_t at = 0; at < num; at += size) {
        uint32_t part = num - at < size ? num - at : size;
        uint8_t flags = (uint8_t)((at == 0) | (at + part == num) << 1);
        if (spoils && below(12) == 0) flags ^= (uint8_t)(1 + below(7));
        if (spoils && below(12) == 0) session.sent += below(3);
        uint32_t n = seal(packet, 0x13, flags, message + at, part);
        uint32_t how = spoils ? below(16) : 99;
        if (how < 4) packet[below(n)] ^= (uint8_t)(1 + below(255)); /* forged: the CRC is right, the tag isn't */
        if (how == 4) packet[below(12)] = (uint8_t)draw();
        if (how == 5) n = below(n + 1);
        n = with_crc(packet, n);
        if (how == 6) packet[below(n)] ^= (uint8_t)(1 << below(8)); /* damaged */
        if (how == 7) continue;                                      /* lost */
        if (how == 8 && num_last) append_stuffed(last, num_last);    /* replayed */
        append_stuffed(packet, n);
        if (how == 9) append_stuffed(packet, n);
        memcpy(last, packet, n);
        num_last = n;
    }
}

/* --- the server's end: what the device sent must be sound */

static bytes reply;

static void take_packet(uint8_t *packet, uint32_t num) {
    uint8_t nonce[12] = {1};
    if (num < 12 + 16 + 4 || get_u32(packet + num - 4) != mh_crc32(0, packet, num - 4)) fail("sent a damaged packet");
    uint32_t length = packet[2] | (uint32_t)packet[3] << 8;
    if (num != 12 + length + 16 + 4) fail("sent a packet of a wrong length");
    memcpy(nonce + 4, packet + 4, 8);
    if (packet[0] == 0x12) {
        uint8_t nothing[1] = {0}, theirs[32];
        num_offers++;
        mh_aead_derive(key, packet + 12, theirs);
        if (mh_aead_open(theirs, nonce, packet, 12 + length, nothing, 0, packet + 12 + length)) fail("a wrong offer");
        session.number = get_u32(packet + 4);
        session.sent = session.received = 0;
        memcpy(session.key, theirs, 32);
        return;
    }
    if (packet[0] != 0x13 || (packet[1] & ~3u) != 4) fail("sent a packet of no kind");
    if (get_u32(packet + 4) != session.number) return; /* of the session that was open before an offer */
    if (get_u32(packet + 8) != ++session.received) fail("lost count");
    if (mh_aead_open(session.key, nonce, packet, 12, packet + 12, length, packet + 12 + length)) fail("a wrong seal");
    if (packet[1] & 1) reply.num = 0;
    if (reply.num + length <= MAX_FRAME) memcpy(reply.data + reply.num, packet + 12, length);
    reply.num += length;
    if (!(packet[1] & 2)) return;
    num_replies++;
    if (reply.num > MAX_FRAME) return;
    if (reply.num < 36 || memcmp(reply.data, "MH\1", 3) || reply.data[4] != 1) fail("a reply that is no frame");
    if (get_u32(reply.data + 8) != reply.num) fail("a reply of a wrong length");
    if (mh_crc32(0, reply.data, reply.num - 4) != get_u32(reply.data + reply.num - 4)) fail("a reply with a wrong CRC");
    double weight;
    memcpy(&weight, reply.data + 24, 8);
    num_refusals += weight == 0.0;
    if (!(weight >= 0.0 && weight < 1e18)) fail("a reply with a wrong weight");
}

static void take_output(void) {
    static uint8_t packet[MH_PACKET_MAX];
    mh_cobs cobs;
    enum mh_cobs_status status;
    for (uint32_t at = 0; at < out_end;) {
        mh_cobs_begin(&cobs, packet, sizeof packet);
        at += mh_cobs_decode(&cobs, out + at, out_end - at, &status);
        if (status == MH_COBS_WHOLE) take_packet(packet, cobs.num);
        else if (status != MH_COBS_EMPTY) fail("sent bytes that are no packet");
    }
    out_end = 0;
}

static void serve(void) {
    alarm(20);
    while (fuzz_serve() == 0) {}
    if (in_at != in_end) fail("left bytes unread");
    in_at = in_end = 0;
    take_output();
}

static void open_session(void) {
    uint8_t packet[64], nonce[8];
    uint64_t before = num_offers;
    for (int i = 0; i < 8; i++) nonce[i] = (uint8_t)draw();
    append_stuffed(packet, with_crc(packet, seal(packet, 0x11, 3, nonce, 8)));
    serve();
    if (num_offers == before) fail("offered no session");
}

static void send_sound(const bytes *b) {
    uint64_t before = num_replies;
    append_message(b->data, b->num, 0);
    serve();
    if (num_replies != before + 1) fail("a sound message wasn't answered");
    if (reply.num >= 36 && reply.data[3] != b->data[3]) fail("an answer to another op");
}

/* --- mutated frames */

typedef struct {
    uint32_t at, num;
} field;

/* The places of a frame's fields, as far as it can be followed; bounds epochs and steps on the way if `bounds`. */
static uint32_t fields_of(bytes *f, field *to, int bounds) {
    static const field HEADER[] = {{0, 2}, {2, 1}, {3, 1}, {4, 1}, {5, 1}, {6, 2}, {8, 4}, {12, 4}, {16, 4}, {20, 2}, {22, 2}, {24, 8}};
    static const uint8_t ITEM[] = {4, 2, 2, 1, 1, 2, 4, 8};
    uint32_t n = 0, at = 32, end = f->num < 36 ? 0 : f->num - 4;
    for (; n < sizeof HEADER / sizeof *HEADER && f->num >= 36; n++) to[n] = HEADER[n];
    uint32_t num_settings = f->num >= 36 ? f->data[5] : 0, num_tensors = f->num >= 36 ? f->data[6] | f->data[7] << 8 : 0;
    for (uint32_t i = 0; i < num_settings && at + 2 <= end && n + 4 < MAX_FIELDS; i++) {
        uint8_t number = f->data[at], type = f->data[at + 1];
        to[n++] = (field){at, 1};
        to[n++] = (field){at + 1, 1};
        at += 2;
        uint32_t size = type == 0 ? 4 : type == 1 ? 8 : 2;
        if (type > 2 || at + size > end) return n;
        to[n++] = (field){at, size};
        if (bounds && type == 0 && (number == MH_SET_EPOCHS || number == MH_SET_STEPS)) {
            int32_t value = (int32_t)get_u32(f->data + at);
            if (value > 3) set_u32(f->data + at, (uint32_t)value % 4);
        }
        if (type == 2) size += f->data[at] | (uint32_t)f->data[at + 1] << 8;
        at += size;
    }
    for (uint32_t i = 0; i < num_tensors && at + 6 <= end && n + 12 < MAX_FIELDS; i++) {
        uint32_t ndim = f->data[at + 5], dtype = f->data[at + 4];
        uint64_t num = dtype < 8 ? ITEM[dtype] : 1;
        to[n++] = (field){at, 4};
        to[n++] = (field){at + 4, 1};
        to[n++] = (field){at + 5, 1};
        at += 6;
        if (ndim > 8 || at + 4 * ndim > end) return n;
        for (uint32_t j = 0; j < ndim; j++, at += 4) {
            to[n++] = (field){at, 4};
            num *= get_u32(f->data + at);
            if (num > end) return n;
        }
        if (at + num > end) return n;
        if (num >= 4) to[n++] = (field){at + (below((uint32_t)num) & ~3u), 4};
        at += (uint32_t)num;
    }
    return n;
}

static void put_number(uint8_t *to, uint32_t num) {
    static const uint32_t EDGES[] = {0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff,
                                     0x80000000u, 0xffffffffu, 0xfffffffeu, 0x40000000, 0x7f800000, 0x7fc00000, 0xff800000u,
                                     0x00000001, 0x7f7fffff, 0x3f800000, 0x447a0000};
    uint32_t value = below(3) ? EDGES[below(sizeof EDGES / sizeof *EDGES)] : draw();
    if (num == 8 && below(2)) {
        static const double DOUBLES[] = {0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, 5e-324, 3.5e38, 0.5, 1e9};
        memcpy(to, &DOUBLES[below(10)], 8);
        return;
    }
    if (below(4) == 0) { /* near what is there */
        uint32_t here = 0;
        memcpy(&here, to, num < 4 ? num : 4);
        value = here + (below(5) - 2) * (below(2) ? 1u : 16u);
    }
    if (num == 8) memcpy(to + 4, &value, 4);
    memcpy(to, &value, num < 4 ? num : 4);
}

static void cut_in(bytes *f, uint32_t at, const uint8_t *from, uint32_t num) {
    if (f->num + num > MAX_FRAME) return;
    memmove(f->data + at + num, f->data + at, f->num - at);
    memcpy(f->data + at, from, num);
    f->num += num;
}

static void cut_out(bytes *f, uint32_t at, uint32_t num) {
    memmove(f->data + at, f->data + at + num, f->num - at - num);
    f->num -= num;
}

static void mutate(bytes *f) {
    static field places[MAX_FIELDS];
    uint8_t noise[16];
    uint32_t rounds = 1 + below(below(4) ? 3 : 10);
    for (uint32_t i = 0; i < rounds && f->num > 36; i++) {
        uint32_t how = below(20), num = fields_of(f, places, 0), at = below(f->num), room = f->num - at;
        if (how < 11 && num) {
            const field *one = &places[below(num)];
            put_number(f->data + one->at, one->num);
        } else if (how < 13) {
            f->data[at] ^= (uint8_t)(1 << below(8));
        } else if (how < 15) {
            put_number(f->data + at, room >= 4 ? 4 : 1);
        } else if (how == 15) {
            for (int j = 0; j < 16; j++) noise[j] = (uint8_t)draw();
            cut_in(f, at, noise, 1 + below(16));
        } else if (how == 16) {
            cut_out(f, at, 1 + below(room));
        } else if (how == 17 && num > 13) { /* a setting or tensor twice, or gone */
            uint32_t first = places[12 + below(num - 12)].at, next = places[12 + below(num - 12)].at;
            if (first > next) continue;
            if (below(2)) {
                static bytes part;
                memcpy(part.data, f->data + first, next - first);
                cut_in(f, next, part.data, next - first);
            } else {
                cut_out(f, first, next - first);
            }
        } else { /* the fields of another frame behind this one's first */
            const bytes *other = &corpus[below(num_corpus)];
            uint32_t from = 32 < other->num ? 32 + below(other->num - 32) : 32;
            if (at < 32 || at + other->num - from > MAX_FRAME) continue;
            memcpy(f->data + at, other->data + from, other->num - from);
            f->num = at + other->num - from;
        }
    }
    if (f->num < 36) f->num = 36;
    fields_of(f, places, 1);
    if (below(16)) set_u32(f->data + 8, f->num);
    if (below(32)) with_crc(f->data, f->num - 4);
}

/* Mutates the bytes that wait to be read. */
static void spoil_input(void) {
    for (uint32_t i = 1 + below(6); i && in_end > 8; i--) {
        uint32_t at = below(in_end), how = below(6);
        if (how < 2) in[at] ^= (uint8_t)(1 << below(8));
        if (how == 2) in[at] = 0;
        if (how == 3) in_end = at + 1; /* broken off */
        if (how == 4) {                /* lost */
            uint32_t num = 1 + below(in_end - at < 40 ? in_end - at : 40);
            memmove(in + at, in + at + num, in_end - at - num);
            in_end -= num;
        }
        if (how == 5) { /* garbage behind */
            uint8_t noise[200];
            uint32_t num = 1 + below(200);
            for (uint32_t j = 0; j < num; j++) noise[j] = (uint8_t)draw();
            append(noise, num);
        }
    }
    append((const uint8_t *)"", 1);
}

/* --- blobs */

/* A LOAD of a part of a blob. Settings: what = "blob", step = its offset; rows = the blob's bytes. */
static void load_part(const bytes *b, uint32_t at, uint32_t num) {
    uint8_t *to = frame.data;
    memset(to, 0, 32);
    memcpy(to, "MH\1\1\0\3\1", 7);
    to += 32;
    memcpy(to, "\16\2\4\0blob", 8), to += 8;
    *to++ = MH_SET_STEP, *to++ = 0, set_u32(to, at), to += 4;
    *to++ = MH_SET_ROWS, *to++ = 0, set_u32(to, b->num), to += 4;
    set_u32(to, mh_crc32(0, "blob", 4)), to += 4;
    *to++ = MH_WIRE_U8, *to++ = 1, set_u32(to, num), to += 4;
    memcpy(to, b->data + at, num), to += num;
    frame.num = (uint32_t)(to - frame.data) + 4;
    set_u32(frame.data + 8, frame.num);
    with_crc(frame.data, frame.num - 4);
}

static double last_error(void) {
    double value = -1;
    if (reply.num >= 36 + 12 && reply.data[20] == 1 && get_u32(reply.data + 32) == mh_crc32(0, "error", 5))
        memcpy(&value, reply.data + 36, 8);
    return value;
}

/* Whether the device took the blob. */
static int load(const bytes *b, uint32_t part) {
    for (uint32_t at = 0; at < b->num; at += part) {
        load_part(b, at, b->num - at < part ? b->num - at : part);
        send_sound(&frame);
        if (last_error() > 0) return 0;
    }
    return 1;
}

/* A place in the blob: of its tables mostly, or of an entry of one of a plan's own tables (steps to sums). */
static uint32_t place_in_blob(void) {
    const mh_blob *head = (const void *)blob.data;
    uint32_t end = head->plans_at + (uint32_t)sizeof(mh_plan) * head->num_plans, how = below(8);
    if (how == 0) return below(blob.num);
    if (how < 5) return below(end);
    uint32_t plan = head->plans_at + (uint32_t)sizeof(mh_plan) * below(head->num_plans);
    uint32_t table = get_u32(blob.data + plan + 20 + 4 * below(4)), num = 4u * head->num_values;
    uint32_t at = table + below(num);
    return table < blob.num && at < blob.num ? at : plan + below(sizeof(mh_plan));
}

static void mutate_blob(void) {
    memcpy(&hostile, &blob, sizeof blob);
    for (uint32_t i = 1 + below(below(3) ? 2 : 8); i; i--) {
        uint32_t at = place_in_blob(), how = below(8);
        if (how < 5)
            put_number(hostile.data + (at & ~3u), 4);
        else if (how < 7)
            put_number(hostile.data + (at & ~1u), 2);
        else
            hostile.data[at] ^= (uint8_t)(1 << below(8));
    }
    if (below(20) == 0) hostile.num = (1 + below(blob.num / 4)) * 4;
    if (below(8)) set_u32(hostile.data + 8, hostile.num);
    if (below(30)) {
        set_u32(hostile.data + 12, 0);
        set_u32(hostile.data + 12, mh_crc32(0, hostile.data, hostile.num));
    }
}

/* A fresh device, made ready by the corpus as it is. */
static void restart(void) {
    memset(port.slot[0], 0xff, port.slot_bytes);
    memset(port.slot[1], 0xff, port.slot_bytes);
    memset(port.store, 0xff, port.store_bytes);
    fuzz_start(&port);
    open_session();
    if (blob.num && !load(&blob, 512)) {
        fprintf(stderr, "fuzz: the sound blob was refused: %g\n", last_error());
        exit(2);
    }
    for (uint32_t i = 0; i < num_corpus; i++) {
        send_sound(&corpus[i]);
        if (last_error() > 0) {
            fprintf(stderr, "fuzz: frame %u of the corpus, op %u, was refused: %g\n", i, corpus[i].data[3], last_error());
            exit(2);
        }
    }
}

static void try_blob(void) {
    mutate_blob();
    num_blobs++;
    int taken = load(&hostile, 64 + below(2000));
    num_blobs_taken += (uint64_t)taken;
    for (uint32_t i = 0; taken && i < num_corpus; i++) send_sound(&corpus[i]);
    restart();
}

static void try_frame(void) {
    uint32_t layer = below(16), num = below(8) ? 1 : 2;
    uint64_t replies = num_replies, sealed = num_sealed;
    for (; num; num--) {
        frame = corpus[below(num_corpus)];
        num_frames++;
        if (layer < 11) mutate(&frame);
        append_message(frame.data, frame.num, layer >= 9);
    }
    if (layer >= 13) spoil_input();
    if (layer == 12) append((const uint8_t *)"\0\1\2\3", 4);
    serve();
    if (num_replies - replies > num_sealed - sealed) fail("answered a packet twice");
}

static void read_file(const char *path, bytes *whole) {
    FILE *f = fopen(path, "rb");
    if (!f) fail(path);
    whole->num = (uint32_t)fread(whole->data, 1, MAX_FRAME, f);
    if (!feof(f)) fail("a file is too long");
    fclose(f);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    static bytes whole;
    if (argc < 6) return 2;
    state = strtoull(argv[1], NULL, 10) * 2 + 1;
    uint64_t most = strtoull(argv[2], NULL, 10);
    double seconds = strtod(argv[3], NULL), began = now();
    read_file(argv[5], &whole);
    for (uint32_t at = 0; at < whole.num && num_corpus < MAX_FRAMES; num_corpus++) {
        corpus[num_corpus].num = get_u32(whole.data + at);
        memcpy(corpus[num_corpus].data, whole.data + at + 4, corpus[num_corpus].num);
        at += 4 + corpus[num_corpus].num;
    }
    if (argc > 6) read_file(argv[6], &blob);
    for (int i = 0; i < 32; i++) key[i] = (uint8_t)draw();
    port.read = read_some;
    port.write = write_all;
    port.ticks = ticks;
    port.random = next_random;
    port.flash_erase = erase;
    port.flash_write = program;
    port.stack_peak = stack_peak;
    port.key = key;
    port.arena_bytes = (uint32_t)strtoul(argv[4], NULL, 10);
    port.arena = aligned(port.arena_bytes);
    port.slot_bytes = (blob.num + 64 + 255) & ~255u;
    port.slot[0] = aligned(port.slot_bytes);
    port.slot[1] = aligned(port.slot_bytes);
    port.store_bytes = 4096;
    port.store = aligned(port.store_bytes);
    restart();
    uint64_t mended = 0;
    for (uint64_t turn = 1; num_frames < most && now() - began < seconds; turn++) {
        if (blob.num && turn % BLOB_TURN == 0)
            try_blob();
        else
            try_frame();
        if (turn % SOUND_TURN == 0) {
            /* The device's session may be the one of the last offer or, after a request that was damaged, not: a server
               that gets no answer opens a new one. */
            uint64_t before = num_replies;
            append_message(corpus[num_corpus - 1].data, corpus[num_corpus - 1].num, 0);
            serve();
            if (num_replies == before) {
                mended++;
                open_session();
                send_sound(&corpus[num_corpus - 1]);
            }
        }
        if (turn % RESTART == 0) restart();
    }
    printf("frames %llu seconds %.1f replies %llu refusals %llu blobs %llu blobs_taken %llu reopened %llu\n",
           (unsigned long long)num_frames, now() - began, (unsigned long long)num_replies,
           (unsigned long long)num_refusals, (unsigned long long)num_blobs, (unsigned long long)num_blobs_taken,
           (unsigned long long)mended);
    return 0;
}
