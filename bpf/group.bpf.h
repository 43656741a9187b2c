// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Which groups are measured.
#ifndef QOS_GROUP_BPF_H
#define QOS_GROUP_BPF_H

#include "kernel.bpf.h"

#define QOS_NO_ROW 0xffffffff

struct qos_group {
	u32 slot;
	u32 row;       // of the matrix, if it is a victim; else QOS_NO_ROW
	u32 epoch;     // tells one tracking of a group from another
	u32 throttled; // it has been, as far as we have seen
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, u64); // id of the group
	__type(value, struct qos_group);
} qos_groups SEC(".maps");

// qos_group_id is the inode number of the group's directory in the cpu controller's hierarchy. A task in an autogroup has none:
// reading through the missing pointer gives 0, which is never tracked.
static __always_inline u64 qos_group_id(struct task_group *tg)
{
	return tg->css.cgroup->kn->id;
}

#endif
