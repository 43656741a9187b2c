// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// What user space is told at once, and from what on.
#ifndef QOS_EVENT_BPF_H
#define QOS_EVENT_BPF_H

#include "kernel.bpf.h"

// Set at any time.
volatile struct {
	u64 event; // a wait in ns above which a victim gives an event; 0: never
	u64 often; // a wait in ns of which only a hundredth may be longer for other containers' sake; 0: all may
	u64 watch; // ns between two looks for waits above event that have not ended; 0: none
} qos_bounds = {};

enum {
	QOS_EVENT_LONG = 0,  // a wait above the bound has ended
	QOS_EVENT_OFTEN = 1, // the wait is within it, but one of too many long ones
	QOS_EVENT_GOES_ON = 2, // a wait is above it by now
};

struct qos_event {
	u64 at; // CLOCK_MONOTONIC
	u64 wait;
	u64 part;
	u32 victim;
	u32 culprit;
	s32 pid;
	s32 cpu;
	u32 kind;
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} qos_events SEC(".maps");

// qos_tell reports whether there was no room.
static __always_inline int qos_tell(const struct qos_event *from)
{
	struct qos_event *e = bpf_ringbuf_reserve(&qos_events, sizeof(*e), 0);
	if (!e)
		return 1;
	*e = *from;
	// Wake the reader now, not when it has caught up: it may be asleep though it has not.
	bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);
	return 0;
}

#endif
