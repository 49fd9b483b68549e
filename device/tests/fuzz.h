/* A device under mutated frames. fuzz.c makes them; fuzz_link.c and fuzz_device.c are what takes them. */
#ifndef MH_FUZZ_H
#define MH_FUZZ_H

#include "mh_port.h"

void fuzz_start(const mh_port *port);
/* One message, as mh_device_serve: 0, or < 0 when there is nothing more to read. */
int fuzz_serve(void);

#endif
