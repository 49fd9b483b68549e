/* A device that tries out its port: each message is a head of four words (operation, place, offset, num), then num bytes
   where the operation takes some; each reply is num bytes, or words. Little-endian.

   places: 0 slot 0, 1 slot 1, 2 store, 3 arena */
#include "mh_device.h"

enum { ECHO = 0, INFO = 1, READ = 2, WRITE = 3, ERASE = 4, POKE = 5, SINK = 6 };

static int take(const mh_port *port, uint8_t *to, uint32_t num)
{
    while (num > 0) {
        int32_t now = port->read(port->self, to, num);
        if (now <= 0) {
            return -1;
        }
        to += now;
        num -= (uint32_t)now;
    }
    return 0;
}

static uint8_t *place_of(const mh_port *port, uint32_t place)
{
    return place < 2 ? port->slot[place] : place == 2 ? port->store : port->arena;
}

void mh_device_init(mh_device *d, const mh_port *port)
{
    d->port = port;
    d->messages = 0;
}

int mh_device_serve(mh_device *d)
{
    const mh_port *port = d->port;
    union {
        uint32_t words[64];
        uint8_t bytes[256];
    } chunk;
    uint32_t head[4];
    uint32_t num, now;
    int32_t status = 0;
    uint8_t *at;

    if (take(port, (uint8_t *)head, sizeof head) < 0) {
        return -1;
    }
    d->messages++;
    num = head[3];
    at = place_of(port, head[1]) + head[2];
    switch (head[0]) {
    case ECHO:
    case SINK:
    case WRITE:
        for (; num > 0; num -= now) {
            now = num < sizeof chunk.bytes ? num : (uint32_t)sizeof chunk.bytes;
            if (take(port, chunk.bytes, now) < 0) {
                return -1;
            }
            if (head[0] == ECHO && port->write(port->self, chunk.bytes, now) < 0) {
                return -1;
            }
            if (head[0] == WRITE) {
                status |= port->flash_write(port->self, at, chunk.bytes, now);
                at += now;
            }
        }
        return head[0] == ECHO ? 0 : port->write(port->self, (const uint8_t *)&status, sizeof status);
    case READ:
        return port->write(port->self, at, num);
    case ERASE:
        status = port->flash_erase(port->self, at, num);
        return port->write(port->self, (const uint8_t *)&status, sizeof status);
    case POKE: /* one byte, as a wild pointer would */
        *(volatile uint8_t *)at = (uint8_t)num;
        return port->write(port->self, (const uint8_t *)&status, sizeof status);
    default:
        chunk.words[0] = port->arena_bytes;
        chunk.words[1] = port->slot_bytes;
        chunk.words[2] = port->store_bytes;
        chunk.words[3] = port->stack_peak(port->self);
        chunk.words[4] = port->ticks(port->self);
        chunk.words[5] = port->random(port->self);
        chunk.words[6] = port->key != 0 ? port->key[0] + 256u * port->key[31] : 0xffffffffu;
        chunk.words[7] = d->messages;
        chunk.words[8] = (uint32_t)((uintptr_t)port->arena % 16u);
        return port->write(port->self, chunk.bytes, 9 * sizeof chunk.words[0]);
    }
}

void mh_device_run(mh_device *d)
{
    while (mh_device_serve(d) == 0) {
    }
}
