package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// groupPrefix begins the name of every control group that tests make.
const groupPrefix = "qos-agent-test-"

// leftovers lists processes that carry the mark in their environment, and control groups of tests that were not there before.
// What goes by itself gets some time for it. The processes are killed: they would disturb whatever runs next.
func leftovers(mark string, before map[string]bool) []string {
	var left []string
	for range 50 {
		left = left[:0]
		for group := range groups() {
			if !before[group] {
				left = append(left, "group "+group)
			}
		}
		for pid, program := range marked(mark) {
			left = append(left, "process "+strconv.Itoa(pid)+" "+program)
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	for pid := range marked(mark) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	slices.Sort(left)
	return left
}

func groups() map[string]bool {
	found := map[string]bool{}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), groupPrefix) {
			found[name] = true
			return fs.SkipDir
		}
		return nil // groups of others come and go
	})
	return found
}

// marked are the processes other than this one whose environment holds the mark.
func marked(mark string) map[int]string {
	found := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(dir + "/environ")
		if err != nil || !slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return string(v) == mark }) {
			continue
		}
		program, _ := os.Readlink(dir + "/exe")
		found[pid] = program
	}
	return found
}
