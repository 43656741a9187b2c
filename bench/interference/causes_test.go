package main

import "testing"

// TestHolder: keys as bpftrace prints them, innermost frame first.
func TestHolder(t *testing.T) {
	const timer = "\n    try_to_wake_up+932\n    hrtimer_wakeup+30\n    asm_sysvec_apic_timer_interrupt+22"
	for key, want := range map[string]string{
		"kworker/u8:1," + timer + "\n    ext4_finish_bio+196\n    ext4_end_io_rsv_work+333\n    process_one_work+407\n    worker_thread+1\n    kthread+241\n": "kworker: ext4_end_io_rsv_work",
		"stress-ng-hdd," + timer + "\n    ext4_writepages+182\n    __x64_sys_close+57\n    do_syscall_64+113\n    entry_SYSCALL_64_after_hwframe+118\n":       "stress-ng-hdd: close",
		"stress-ng-hdd," + timer + "\n    filemap_read+5\n    ksys_read+111\n    do_syscall_64+113\n":                                                         "stress-ng-hdd: read",
		"stress-ng-vm," + timer + "\n    clear_page_erms+7\n    exc_page_fault+1\n    asm_exc_page_fault+38\n":                                                "stress-ng-vm: page fault",
		"swapper/0," + timer + "\n    poll_idle+3\n    cpuidle_enter+41\n    do_idle+397\n":                                                                   "swapper: cpuidle_enter",
		"xz," + timer + "\n": "xz",
	} {
		if got := holder(key); got != want {
			t.Errorf("%q: %q, want %q", key, got, want)
		}
	}
}

func TestLargest(t *testing.T) {
	if got, want := largest(map[string]float64{"a": 1, "b": 3, "c": 2, "d": 0.5, "e": 0.01}), "b 3.0 ms/s, c 2.0 ms/s, a 1.0 ms/s"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
