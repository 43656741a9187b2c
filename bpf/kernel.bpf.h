// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// What the programs need of the kernel and of libbpf, and nothing more. The structs name only the fields that are read; where
// those are is filled in when a program is loaded (CO-RE), so no dump of a kernel's types has to be carried along, and clang is
// all that it takes to build.
#ifndef QOS_KERNEL_BPF_H
#define QOS_KERNEL_BPF_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed int s32;
typedef signed long long s64;

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
#define __unused __attribute__((unused))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

// From uapi/linux/bpf.h; both sides of that interface are stable.
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_RINGBUF 27
#define BPF_CLOCK_MONOTONIC 1
#define BPF_F_MMAPABLE (1U << 10)
#define BPF_RB_FORCE_WAKEUP (1ULL << 1)

struct bpf_timer {
	u64 opaque[2];
} __attribute__((aligned(8)));

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_probe_read_kernel)(void *dst, u32 size, const void *src) = (void *)113;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static u32 (*bpf_get_smp_processor_id)(void) = (void *)8;
static void *(*bpf_ringbuf_reserve)(void *map, u64 size, u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;
static long (*bpf_timer_init)(struct bpf_timer *timer, void *map, u64 clock) = (void *)169;
static long (*bpf_timer_set_callback)(struct bpf_timer *timer, void *callback) = (void *)170;
static long (*bpf_timer_start)(struct bpf_timer *timer, u64 ns, u64 flags) = (void *)171;

// exists(field) is decided at load: code for a kernel that has no such field is then dead and dropped.
#define exists(field) __builtin_preserve_field_info(field, 2)
#define PF_KTHREAD 0x00200000
#define TASK_RUNNING 0
#define TASK_ON_RQ_MIGRATING 2

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	u64 id; // on 64-bit machines also the inode number of the directory
};

struct cgroup {
	struct kernfs_node *kn;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct list_head {
	struct list_head *next;
};

struct rb_node {
	struct rb_node *rb_right, *rb_left;
};

struct rb_root {
	struct rb_node *rb_node;
};

struct rb_root_cached {
	struct rb_root rb_root;
	struct rb_node *rb_leftmost;
};

struct rq {
	u64 clock;      // ns; the clock of enqueue stamps, one per CPU
	u64 clock_task; // the same less interrupts and stolen time, as far as the kernel accounts those
	u64 clock_pelt; // the same scaled by the CPU's speed, catching up when the CPU idles
	unsigned long lost_idle_time;
	int cpu;
	unsigned int nr_running;
	struct list_head leaf_cfs_rq_list; // queues of groups that have something queued
};

struct cfs_rq {
	struct rq *rq;
	struct rb_root_cached tasks_timeline; // what waits
	struct sched_entity *curr;	      // what runs
	struct list_head leaf_cfs_rq_list;
	struct task_group *tg;
	int throttle_count; // how many groups from this one up have used up their quota
	// See quota.bpf.h; no kernel has all of them.
	u64 throttled_clock_task, throttled_clock_task_time;
	u64 throttled_clock_pelt, throttled_clock_pelt_time;
	u64 throttled_clock_self, throttled_clock_self_time;
};

struct task_group {
	struct cgroup_subsys_state css;
};

struct sched_entity {
	struct rb_node run_node;
	struct cfs_rq *cfs_rq; // in which it is queued
	struct cfs_rq *my_q;   // of a group; a task has none
	u8 sched_delayed; // 6.12+: asleep, but not yet taken off the run queue
};

struct sched_info {
	unsigned long pcount;           // dispatches
	unsigned long long run_delay;   // total wait, up to the last dispatch or migration
	unsigned long long last_queued; // when it was put into this run queue; 0 while it runs or sleeps
};

struct task_struct {
	unsigned int __state;
	unsigned int flags;
	int on_rq;
	int pid;
	u64 start_time;
	struct sched_entity se;
	struct task_group *sched_task_group;
	struct sched_info sched_info;
	_Bool throttled; // 6.18+: put aside until its group has quota again
};

#pragma clang attribute pop

#endif
