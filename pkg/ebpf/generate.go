package ebpf

// The generated files are committed: only who changes bpf/ needs clang. TestObjectsAreReproducible compares them with the source.
//go:generate go tool bpf2go -target bpfel -no-global-types -type qos_counters -type qos_cpu -type qos_row -type qos_group runqueue ../../bpf/runqueue.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
