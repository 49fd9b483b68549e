/* The link and the reader of frames alone: reads every field of a message in turn and answers what it found. */
#include <stdlib.h>

#include "fuzz.h"
#include "mh_frame.h"

static mh_link link_;

void fuzz_start(const mh_port *port) { mh_link_init(&link_, port); }

static int read_all(mh_reader *r, uint32_t *seen) {
    mh_setting setting;
    mh_tensor tensor;
    float floats[5];
    int32_t numbers[5];
    while (r->num_settings && !r->status)
        if (mh_frame_setting(r, &setting) == 0) *seen += setting.text_bytes;
    for (int turn = 0; r->num_tensors && !r->status; turn++) {
        if (mh_frame_tensor(r, &tensor)) break;
        for (uint32_t left = tensor.elements; left && !r->status;) {
            uint32_t part = left < 5 ? left : 5;
            if (turn % 3 == 2) break; /* left for the next call to skip */
            if (turn % 2 || tensor.dtype < MH_WIRE_I8)
                mh_frame_f32(r, &tensor, floats, part);
            else
                mh_frame_i32(r, &tensor, numbers, part);
            left -= part;
            *seen += part;
        }
    }
    return mh_frame_done(r);
}

int fuzz_serve(void) {
    mh_reader r;
    mh_writer w;
    uint32_t seen = 0, shape[1] = {1};
    if (mh_link_open(&link_) < 0) return -1;
    if (mh_frame_begin(&r, &link_) == 0) read_all(&r, &seen);
    int status = mh_link_close(&link_);
    if (status == MH_LINK_CLOSED) return -1;
    if (status) return 0;
    mh_frame_reply(&w, &link_, r.status ? 11 : r.op, r.round, r.device, 1, 1, r.status ? 0.0 : 1.0,
                   MH_FRAME_OVERHEAD + MH_FRAME_TENSOR(1) + 4 + MH_FRAME_METRIC);
    mh_frame_put_tensor(&w, 1, MH_WIRE_I32, 1, shape);
    mh_frame_put(&w, &seen, 4);
    mh_frame_put_metric(&w, 0, r.status);
    if (mh_frame_end(&w)) abort(); /* a whole message must be answerable */
    return 0;
}
