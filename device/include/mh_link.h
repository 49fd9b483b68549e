/* Messages in sealed packets over any byte stream: docs/link.md has the layout and the rules; the twin of the other end is
   src/midhaul/link/packet.py. Half duplex: a message is read to its end and closed before the reply begins, so that one
   buffer of a packet serves both ways. */
#ifndef MH_LINK_H
#define MH_LINK_H

#include <stdint.h>

#include "mh_port.h"

#ifndef MH_PACKET_BODY
#define MH_PACKET_BODY 1024 /* bytes of a message in one packet, at most; 64 to 1024. The device tells the other end */
#endif
#define MH_PACKET_HEAD 12
#define MH_PACKET_TAG 16
#define MH_PACKET_CRC 4
#define MH_PACKET_MAX (MH_PACKET_HEAD + MH_PACKET_BODY + MH_PACKET_TAG + MH_PACKET_CRC)
#define MH_LINK_LEAD (1 + MH_PACKET_MAX / 254 + 1) /* of a packet to send: a zero, and what stuffing adds */
#define MH_LINK_STAGE 64                           /* bytes taken from the stream at a time */

enum mh_link_status {
    MH_LINK_CLOSED = -1, /* the stream is closed: nothing more will come or go */
    MH_LINK_BROKEN = -2, /* a packet of the message is missing. It gets no reply; the next mh_link_open finds the next */
    MH_LINK_ENDED = -3   /* the message has fewer bytes than were asked for; it may be closed and answered */
};

/* Packets that were refused, by what was wrong with them; the names are midhaul.link.packet.REFUSALS. */
enum mh_refusal {
    MH_REFUSED_CODING = 0, /* not COBS: bytes were lost or added */
    MH_REFUSED_SIZE,       /* too long, too short, or not of the length that it says */
    MH_REFUSED_CRC,        /* damaged */
    MH_REFUSED_KIND,       /* of another version, direction or kind */
    MH_REFUSED_SESSION,    /* of a session that isn't open */
    MH_REFUSED_REPLAY,     /* of a counter that was there or was passed by */
    MH_REFUSED_TAG,        /* not sealed with this session's key */
    MH_REFUSED_BROKEN,     /* sound, but of a message of which a packet is missing */
    MH_NUM_REFUSALS
};

typedef struct {
    uint32_t number;   /* 0: no session */
    uint32_t received; /* counter of the last packet taken */
    uint32_t sent;     /* counter of the last packet sent */
    uint8_t key[32];
} mh_session;

typedef struct mh_link {
    const mh_port *port;
    mh_session now, next; /* the open session, and the one that was offered and not yet taken up */
    uint32_t refused[MH_NUM_REFUSALS];
    uint32_t at, end;             /* what is left of the body in the buffer; to write: where it goes on */
    uint32_t stage_at, stage_end; /* what is left of the stage */
    uint8_t is_open, is_broken, is_writing;
    uint8_t is_first, is_last, has_gap; /* of the packet in the buffer */
    uint8_t is_held;                    /* the packet in the buffer is the first of the next message */
    uint8_t zero;
    uint8_t stage[MH_LINK_STAGE];
    uint8_t buffer[MH_LINK_LEAD + MH_PACKET_MAX + 1];
} mh_link;

void mh_link_init(mh_link *l, const mh_port *port);

/* Waits for the first packet of a message, answering requests for a session on the way. 0, or MH_LINK_CLOSED. */
int mh_link_open(mh_link *l);

/* Writes the next num bytes of the message; `to` may be NULL to skip them. 0, or an mh_link_status. */
int mh_link_read(mh_link *l, void *to, uint32_t num);

/* Whether all bytes of the message were read. May wait for no packet: the last one says that it is the last. */
int mh_link_at_end(const mh_link *l);

/* Skips to the end of the message. 0; or MH_LINK_BROKEN or MH_LINK_CLOSED: then there is no reply to it. */
int mh_link_close(mh_link *l);

/* Begins a reply, puts bytes into it, ends it. 0; MH_LINK_BROKEN, with nothing sent, where no session is open, a message
   is being read or was broken, a packet of the next one waits already, or the session's counter is spent; or MH_LINK_CLOSED. */
int mh_link_begin(mh_link *l);
int mh_link_write(mh_link *l, const void *from, uint32_t num);
int mh_link_end(mh_link *l);

/* The number of packets refused so far, of all kinds. */
uint32_t mh_link_refused(const mh_link *l);

#endif
