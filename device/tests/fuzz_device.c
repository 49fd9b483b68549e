/* The whole device. */
#include "fuzz.h"
#include "mh_device.h"

static mh_device device;

void fuzz_start(const mh_port *port) { mh_device_init(&device, port); }

int fuzz_serve(void) { return mh_device_serve(&device); }
