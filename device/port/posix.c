/* A device as a process: bytes on stdin and stdout, or on a socket that it connects to. Slots and store are a file, mapped
   and shared, so that they outlive the process however it ends.

   usage: mh_device ARENA SLOT STORE FLASH [HOST:PORT]     sizes in bytes; FLASH is made, erased, if it isn't there
   environment: MH_KEY, the device's key as 64 hex digits; MH_CUT, the number of 4-byte words of flash that it writes or
   erases before it kills itself, as if power had gone then. */
#define _DEFAULT_SOURCE 1 /* MAP_ANONYMOUS */
#define _DARWIN_C_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mh_device.h"
#include "mh_port.h"

enum { MH_PAGE_BYTES = 4096 };

typedef struct {
    int in, out, noise;
    int64_t words; /* of flash until power goes; < 0: it stays */
} mh_posix;

static int32_t mh_posix_read(void *self, uint8_t *to, uint32_t max)
{
    mh_posix *p = self;

    for (;;) {
        ssize_t num = read(p->in, to, max > 0x40000000u ? 0x40000000u : max);
        if (num >= 0) {
            return (int32_t)num;
        }
        if (errno != EINTR) {
            return -1;
        }
    }
}

static int32_t mh_posix_write(void *self, const uint8_t *from, uint32_t num)
{
    mh_posix *p = self;

    while (num > 0) {
        ssize_t done = write(p->out, from, num);
        if (done < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -1;
        }
        from += done;
        num -= (uint32_t)done;
    }
    return 0;
}

static uint32_t mh_posix_ticks(void *self)
{
    (void)self;
    return 0;
}

static uint32_t mh_posix_random(void *self)
{
    mh_posix *p = self;
    uint32_t word = 0;

    if (read(p->noise, &word, sizeof word) != (ssize_t)sizeof word) {
        exit(3);
    }
    return word;
}

static void mh_posix_spend(mh_posix *p)
{
    if (p->words == 0) {
        raise(SIGKILL);
    }
    if (p->words > 0) {
        p->words--;
    }
}

static int32_t mh_posix_erase(void *self, uint8_t *at, uint32_t num)
{
    uint32_t n;

    if ((uintptr_t)at % MH_PAGE_BYTES != 0 || num % MH_PAGE_BYTES != 0) {
        return -1;
    }
    for (n = 0; n < num; n += 4) {
        mh_posix_spend(self);
        memset(at + n, 0xff, 4);
    }
    return 0;
}

static int32_t mh_posix_program(void *self, uint8_t *at, const uint8_t *from, uint32_t num)
{
    uint32_t n, k;

    if (((uintptr_t)at | num) % 4 != 0) {
        return -1;
    }
    for (n = 0; n < num; n += 4) {
        mh_posix_spend(self);
        for (k = 0; k < 4; k++) {
            at[n + k] &= from[n + k];
        }
    }
    return 0;
}

static uint32_t mh_posix_stack(void *self)
{
    (void)self;
    return 0;
}

static int mh_fail(const char *what, const char *name)
{
    fprintf(stderr, "%s %s: %s\n", what, name, strerror(errno));
    return 2;
}

static size_t mh_size(const char *text)
{
    char *end;
    unsigned long size = strtoul(text, &end, 10);

    if (*text == 0 || *end != 0 || size == 0 || size > 0x7fffffffu) {
        fprintf(stderr, "not a size in bytes: %s\n", text);
        exit(2);
    }
    return (size + MH_PAGE_BYTES - 1) / MH_PAGE_BYTES * MH_PAGE_BYTES;
}

static uint8_t *mh_map_flash(const char *name, size_t bytes)
{
    int file = open(name, O_RDWR | O_CREAT, 0600);
    struct stat about;
    uint8_t *flash;

    if (file < 0 || fstat(file, &about) != 0) {
        return NULL;
    }
    if ((size_t)about.st_size != 0 && (size_t)about.st_size != bytes) {
        errno = EINVAL;
        return NULL;
    }
    if (about.st_size == 0 && ftruncate(file, (off_t)bytes) != 0) {
        return NULL;
    }
    flash = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (flash == MAP_FAILED) {
        return NULL;
    }
    if (about.st_size == 0) {
        memset(flash, 0xff, bytes);
    }
    return flash;
}

static int mh_connect(char *address)
{
    struct addrinfo want, *found, *one;
    char *colon = strrchr(address, ':');
    int file = -1;

    memset(&want, 0, sizeof want);
    want.ai_socktype = SOCK_STREAM;
    if (colon == NULL) {
        errno = EINVAL;
        return -1;
    }
    *colon = 0;
    if (getaddrinfo(address, colon + 1, &want, &found) != 0) {
        errno = EADDRNOTAVAIL;
        return -1;
    }
    for (one = found; one != NULL && file < 0; one = one->ai_next) {
        file = socket(one->ai_family, one->ai_socktype, one->ai_protocol);
        if (file >= 0 && connect(file, one->ai_addr, one->ai_addrlen) != 0) {
            close(file);
            file = -1;
        }
    }
    freeaddrinfo(found);
    return file;
}

static int mh_key(const char *text, uint8_t key[32])
{
    unsigned n, value;

    if (strlen(text) != 64 || strspn(text, "0123456789abcdefABCDEF") != 64) {
        return -1;
    }
    for (n = 0; n < 32; n++) {
        sscanf(text + 2 * n, "%2x", &value);
        key[n] = (uint8_t)value;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static mh_device device;
    static mh_port port;
    static mh_posix p;
    static uint8_t key[32];
    size_t arena, slot, store;
    const char *text;
    uint8_t *flash;

    if (argc != 5 && argc != 6) {
        fprintf(stderr, "usage: mh_device ARENA SLOT STORE FLASH [HOST:PORT]\n");
        return 2;
    }
    arena = mh_size(argv[1]);
    slot = mh_size(argv[2]);
    store = mh_size(argv[3]);
    signal(SIGPIPE, SIG_IGN);
    p.in = 0;
    p.out = 1;
    if (argc == 6) {
        p.in = p.out = mh_connect(argv[5]);
        if (p.in < 0) {
            return mh_fail("can't connect to", argv[5]);
        }
    }
    p.noise = open("/dev/urandom", O_RDONLY);
    if (p.noise < 0) {
        return mh_fail("can't open", "/dev/urandom");
    }
    text = getenv("MH_CUT");
    p.words = text == NULL ? -1 : (int64_t)strtoul(text, NULL, 10);
    text = getenv("MH_KEY");
    if (text != NULL) {
        if (mh_key(text, key) != 0) {
            fprintf(stderr, "MH_KEY isn't 64 hex digits\n");
            return 2;
        }
        port.key = key;
    }
    flash = mh_map_flash(argv[4], 2 * slot + store);
    if (flash == NULL) {
        return mh_fail("can't map, with these sizes,", argv[4]);
    }
    port.self = &p;
    port.read = mh_posix_read;
    port.write = mh_posix_write;
    port.ticks = mh_posix_ticks;
    port.random = mh_posix_random;
    port.flash_erase = mh_posix_erase;
    port.flash_write = mh_posix_program;
    port.stack_peak = mh_posix_stack;
    port.arena = mmap(NULL, arena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (port.arena == MAP_FAILED) {
        return mh_fail("can't map", "the arena");
    }
    port.arena_bytes = (uint32_t)arena;
    port.slot[0] = flash;
    port.slot[1] = flash + slot;
    port.slot_bytes = (uint32_t)slot;
    port.store = flash + 2 * slot;
    port.store_bytes = (uint32_t)store;
    mh_device_init(&device, &port);
    mh_device_run(&device);
    return 0;
}
