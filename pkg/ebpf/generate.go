package ebpf

// The generated files are committed: only who changes bpf/ needs clang. TestObjectsAreReproducible compares them with the source.
//go:generate go tool bpf2go -target bpfel -no-global-types -type qos_counters -type qos_cpu -type qos_digest -type qos_row -type qos_group -type qos_quota -type qos_waiters -type qos_look_args runqueue ../../bpf/runqueue.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -target bpfel -no-global-types -output-suffix _test -type qos_cpu -type qos_digest -type qos_check_hist -type qos_check_wait -type qos_check_log -type qos_check_clock -type qos_quota -type qos_quota_key check ../../bpf/check.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
