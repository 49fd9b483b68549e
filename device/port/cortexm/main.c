/* The firmware: one device over one port. */
#include "cortexm.h"
#include "mh_device.h"

void mh_main(void);

void mh_main(void)
{
    static mh_port port;
    static mh_device device;

    mh_cortexm_port(&port);
    mh_port_open(&port);
    mh_device_init(&device, &port);
    mh_device_run(&device);
}
