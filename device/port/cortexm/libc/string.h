/* All of libc that the runtime uses, for compilers that come without one; memory.c has the functions. */
#ifndef MH_STRING_H
#define MH_STRING_H

#include <stddef.h>

void *memcpy(void *to, const void *from, size_t num);
void *memmove(void *to, const void *from, size_t num);
void *memset(void *to, int value, size_t num);
int memcmp(const void *a, const void *b, size_t num);

#endif
