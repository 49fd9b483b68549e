/* Stands in for device/include/mh_device.h in builds of device/tests/echo.c, a device that only tries out its port. */
#ifndef MH_DEVICE_H
#define MH_DEVICE_H

#include "mh_port.h"

typedef struct mh_device {
    const mh_port *port;
    uint32_t messages;
} mh_device;

void mh_device_init(mh_device *d, const mh_port *port);
int mh_device_serve(mh_device *d);
void mh_device_run(mh_device *d);

#endif
