#ifndef MK_RUN_H
#define MK_RUN_H

#include "kernel.h"

/* Lays out a thread's memory for a job. Gives 0, or 1 if memory ran out. */
int mk_prepare(mk_run *r, const mk_job *job);
void mk_release(mk_run *r);

/* Does `device` for each device, on as many threads as the job says. Gives 0, or 1 if memory ran out. */
int mk_each_device(mk_run *r, int (*device)(mk_thread *t, int64_t d));

/* Fills a thread's weights with what a device starts from. */
void mk_start(mk_thread *t, int64_t device);

/* Writes what a device ends with, for every parameter that has an end: from its weights or, if `gradient` and the
   parameter is trained, from its gradient. */
void mk_end(mk_thread *t, int64_t device, int gradient);

/* Fills the first layer's input with `num` rows of x. */
void mk_read_rows(mk_thread *t, const int64_t *rows, int64_t num);

/* Reads the job's slopes at the outputs of `num` rows from place `at` on; if it has none, writes these outputs. */
void mk_move_outputs(mk_thread *t, int64_t at, int64_t num);

#endif
