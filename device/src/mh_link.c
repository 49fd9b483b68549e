#include "mh_link.h"

#include <string.h>

#include "mh_aead.h"
#include "mh_cobs.h"
#include "mh_crc32.h"

/* Layout: see docs/link.md. */
enum { KIND_REQUEST = 0x11, KIND_OFFER = 0x12, KIND_DATA = 0x13 };
enum { FLAG_FIRST = 1, FLAG_LAST = 2, FLAG_FROM_DEVICE = 4 };
enum { NONCE_BYTES = 8, OFFER_BYTES = 2 * NONCE_BYTES + 4 };

static uint32_t load_u32(const uint8_t *from) {
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static void store_u16(uint8_t *to, uint32_t value) {
    to[0] = (uint8_t)value;
    to[1] = (uint8_t)(value >> 8);
}

static void store_u32(uint8_t *to, uint32_t value) {
    store_u16(to, value);
    store_u16(to + 2, value >> 16);
}

static void nonce_of(const uint8_t *head, uint8_t nonce[MH_AEAD_NONCE]) {
    memset(nonce, 0, 4);
    nonce[0] = head[1] & FLAG_FROM_DEVICE ? 1 : 0;
    memcpy(nonce + 4, head + 4, 8); /* session and counter */
}

void mh_link_init(mh_link *l, const mh_port *port) {
    memset(l, 0, sizeof *l);
    l->port = port;
}

static int refuse(mh_link *l, enum mh_refusal why) {
    l->refused[why]++;
    return 0;
}

/* Adds head, tag and CRC around the body in the buffer, stuffs it in place and writes it between two zeros. */
static int send(mh_link *l, uint8_t kind, uint8_t flags, mh_session *session, uint32_t length) {
    uint8_t *head = l->buffer + MH_LINK_LEAD, *body = head + MH_PACKET_HEAD, nonce[MH_AEAD_NONCE];
    uint32_t num = MH_PACKET_HEAD + length;
    head[0] = kind;
    head[1] = (uint8_t)(flags | FLAG_FROM_DEVICE);
    store_u16(head + 2, length);
    store_u32(head + 4, session->number);
    store_u32(head + 8, session->sent);
    if (l->port->key) {
        nonce_of(head, nonce);
        if (kind == KIND_DATA)
            mh_aead_seal(session->key, nonce, head, MH_PACKET_HEAD, body, length, body + length);
        else
            mh_aead_seal(session->key, nonce, head, MH_PACKET_HEAD + length, body + length, 0, body + length);
        num += MH_PACKET_TAG;
    }
    store_u32(head + num, mh_crc32(0, head, num));
    l->buffer[0] = 0;
    num = 1 + mh_cobs_encode(head, num + MH_PACKET_CRC, l->buffer + 1);
    l->buffer[num++] = 0;
    return l->port->write(l->port->self, l->buffer, num) < 0 ? MH_LINK_CLOSED : 0;
}

/* Answers a request for a session. The open session stays until a packet under the new one's key is taken, so that a
   replayed or foreign request changes nothing. */
static int offer(mh_link *l, const uint8_t *theirs) {
    const mh_port *port = l->port;
    uint8_t random[2 * NONCE_BYTES], *body = l->buffer + MH_LINK_LEAD + MH_PACKET_HEAD;
    for (uint32_t i = 0; i < NONCE_BYTES; i += 4) store_u32(random + i, port->random(port->self));
    memcpy(random + NONCE_BYTES, theirs, NONCE_BYTES);
    do {
        l->next.number = port->random(port->self);
        l->next.number += l->next.number == 0;
    } while (l->next.number == l->now.number && ++l->next.number == 0);
    l->next.received = l->next.sent = 0;
    if (port->key) mh_aead_derive(port->key, random, l->next.key);
    memcpy(body, random, sizeof random);
    store_u16(body + sizeof random, MH_PACKET_BODY);
    store_u16(body + sizeof random + 2, 0);
    return send(l, KIND_OFFER, FLAG_FIRST | FLAG_LAST, &l->next, OFFER_BYTES);
}

/* Looks at a whole packet of num bytes in the buffer: 1 if its body is there to be read, 0 if there is nothing for the
   caller, or MH_LINK_CLOSED. */
static int take(mh_link *l, uint32_t num) {
    uint8_t *head = l->buffer, *body = head + MH_PACKET_HEAD, nonce[MH_AEAD_NONCE];
    if (num < MH_PACKET_HEAD + MH_PACKET_CRC + 1) return refuse(l, MH_REFUSED_SIZE);
    num -= MH_PACKET_CRC;
    if (mh_crc32(0, head, num) != load_u32(head + num)) return refuse(l, MH_REFUSED_CRC);
    if ((head[0] != KIND_REQUEST && head[0] != KIND_DATA) || head[1] & ~(FLAG_FIRST | FLAG_LAST))
        return refuse(l, MH_REFUSED_KIND);
    uint32_t length = (uint32_t)head[2] | (uint32_t)head[3] << 8, number = load_u32(head + 4),
             counter = load_u32(head + 8), tag = l->port->key && head[0] == KIND_DATA ? MH_PACKET_TAG : 0;
    if (length == 0 || num != MH_PACKET_HEAD + length + tag || length > MH_PACKET_BODY)
        return refuse(l, MH_REFUSED_SIZE);
    if (head[0] == KIND_REQUEST) {
        uint8_t theirs[NONCE_BYTES];
        if (length != NONCE_BYTES) return refuse(l, MH_REFUSED_SIZE);
        memcpy(theirs, body, NONCE_BYTES);
        return offer(l, theirs);
    }
    mh_session *session = number == l->now.number ? &l->now : &l->next;
    if (number == 0 || number != session->number) return refuse(l, MH_REFUSED_SESSION);
    if (counter <= session->received) return refuse(l, MH_REFUSED_REPLAY);
    if (tag) {
        nonce_of(head, nonce);
        if (mh_aead_open(session->key, nonce, head, MH_PACKET_HEAD, body, length, body + length))
            return refuse(l, MH_REFUSED_TAG);
    }
    l->has_gap = counter - session->received != 1;
    session->received = counter;
    if (session == &l->next) {
        l->now = l->next;
        memset(&l->next, 0, sizeof l->next);
    }
    l->is_first = (head[1] & FLAG_FIRST) != 0;
    l->is_last = (head[1] & FLAG_LAST) != 0;
    l->at = MH_PACKET_HEAD;
    l->end = MH_PACKET_HEAD + length;
    return 1;
}

/* Waits for the next sound packet: 0, or MH_LINK_CLOSED. */
static int receive(mh_link *l) {
    mh_cobs cobs;
    mh_cobs_begin(&cobs, l->buffer, MH_PACKET_MAX);
    for (;;) {
        enum mh_cobs_status status;
        if (l->stage_at == l->stage_end) {
            int32_t num = l->port->read(l->port->self, l->stage, MH_LINK_STAGE);
            if (num <= 0 || num > MH_LINK_STAGE) return MH_LINK_CLOSED;
            l->stage_at = 0;
            l->stage_end = (uint32_t)num;
        }
        l->stage_at += mh_cobs_decode(&cobs, l->stage + l->stage_at, l->stage_end - l->stage_at, &status);
        if (status == MH_COBS_MORE) continue;
        if (status == MH_COBS_CODING) refuse(l, MH_REFUSED_CODING);
        if (status == MH_COBS_TOO_LONG) refuse(l, MH_REFUSED_SIZE);
        if (status == MH_COBS_WHOLE) {
            int got = take(l, cobs.num);
            if (got) return got < 0 ? got : 0;
        }
        mh_cobs_begin(&cobs, l->buffer, MH_PACKET_MAX);
    }
}

static int broken(mh_link *l) {
    l->refused[MH_REFUSED_BROKEN]++;
    l->is_broken = 1;
    return MH_LINK_BROKEN;
}

static int next_packet(mh_link *l) {
    if (receive(l) < 0) {
        l->is_broken = 1;
        return MH_LINK_CLOSED;
    }
    if (l->is_first) {
        l->is_held = 1;
        return broken(l);
    }
    return l->has_gap ? broken(l) : 0;
}

int mh_link_open(mh_link *l) {
    if (l->is_open && mh_link_close(l) == MH_LINK_CLOSED) return MH_LINK_CLOSED;
    l->is_writing = 0;
    while (!l->is_held) {
        if (receive(l) < 0) return MH_LINK_CLOSED;
        if (l->is_first)
            l->is_held = 1;
        else
            refuse(l, MH_REFUSED_BROKEN);
    }
    l->is_held = l->is_broken = 0;
    l->is_open = 1;
    return 0;
}

int mh_link_read(mh_link *l, void *to, uint32_t num) {
    uint8_t *out = to;
    if (!l->is_open || l->is_broken) return MH_LINK_BROKEN;
    while (num) {
        if (l->at == l->end) {
            if (l->is_last) return MH_LINK_ENDED;
            int status = next_packet(l);
            if (status < 0) return status;
        }
        uint32_t part = l->end - l->at < num ? l->end - l->at : num;
        if (out) {
            memcpy(out, l->buffer + l->at, part);
            out += part;
        }
        l->at += part;
        num -= part;
    }
    return 0;
}

int mh_link_at_end(const mh_link *l) { return !l->is_open || (!l->is_broken && l->at == l->end && l->is_last); }

int mh_link_close(mh_link *l) {
    int status = 0;
    if (!l->is_open) return 0;
    if (l->is_broken) status = MH_LINK_BROKEN;
    while (status == 0 && !l->is_last) status = next_packet(l);
    l->is_open = 0;
    return status;
}

int mh_link_begin(mh_link *l) {
    if (l->is_open || l->is_held || l->is_broken || l->now.number == 0) return MH_LINK_BROKEN;
    l->is_writing = l->is_first = 1;
    l->at = MH_LINK_LEAD + MH_PACKET_HEAD;
    l->end = l->at + MH_PACKET_BODY;
    return 0;
}

static int flush(mh_link *l, uint8_t flags) {
    if (l->now.sent == 0xffffffffu) {
        l->is_writing = 0;
        return MH_LINK_BROKEN;
    }
    l->now.sent++;
    if (l->is_first) flags |= FLAG_FIRST;
    l->is_first = 0;
    int status = send(l, KIND_DATA, flags, &l->now, l->at - MH_LINK_LEAD - MH_PACKET_HEAD);
    l->at = MH_LINK_LEAD + MH_PACKET_HEAD;
    if (status) l->is_writing = 0;
    return status;
}

int mh_link_write(mh_link *l, const void *from, uint32_t num) {
    const uint8_t *bytes = from;
    if (!l->is_writing) return MH_LINK_BROKEN;
    while (num) {
        if (l->at == l->end) { /* only now: the packet that ends the message must say so */
            int status = flush(l, 0);
            if (status) return status;
        }
        uint32_t part = l->end - l->at < num ? l->end - l->at : num;
        memcpy(l->buffer + l->at, bytes, part);
        l->at += part;
        bytes += part;
        num -= part;
    }
    return 0;
}

int mh_link_end(mh_link *l) {
    if (!l->is_writing || l->at == MH_LINK_LEAD + MH_PACKET_HEAD) return MH_LINK_BROKEN;
    int status = flush(l, FLAG_LAST);
    l->is_writing = 0;
    return status;
}

uint32_t mh_link_refused(const mh_link *l) {
    uint32_t sum = 0;
    for (int i = 0; i < MH_NUM_REFUSALS; i++) sum += l->refused[i];
    return sum;
}
