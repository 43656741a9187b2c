package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	blockBytes = 64 << 10
	batchEnv   = "QOS_AGENT_DEMO_BATCH"
	stride     = 64 // bytes between two counters, so that they do not share a cache line
)

// batch is offline work: processes of one thread that hash blocks and count them in memory that they share with us.
type batch struct {
	counters []byte
	cmds     []*exec.Cmd
}

// startBatch starts n processes. Each hashes the given number of blocks and then sleeps, again and again; with no sleep it
// never stops. They are started stopped; see resume.
func startBatch(file string, n, blocks int, sleep time.Duration, join func(pid int) error) (*batch, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("batch: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(int64(n) * stride); err != nil {
		return nil, fmt.Errorf("batch: %w", err)
	}
	counters, err := unix.Mmap(int(f.Fd()), 0, n*stride, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("batch: map counters: %w", err)
	}
	b := &batch{counters: counters}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for i := range n {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %d %s", batchEnv, i, blocks, sleep, file), "GOMAXPROCS=1", "GOGC=off")
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			b.stop()
			return nil, fmt.Errorf("batch: %w", err)
		}
		b.cmds = append(b.cmds, cmd)
		if err := join(cmd.Process.Pid); err != nil {
			b.stop()
			return nil, err
		}
	}
	b.pause()
	return b, nil
}

func (b *batch) pause()  { b.signal(syscall.SIGSTOP) }
func (b *batch) resume() { b.signal(syscall.SIGCONT) }

func (b *batch) signal(s syscall.Signal) {
	for _, cmd := range b.cmds {
		_ = cmd.Process.Signal(s) // an ended one shows in the count of blocks
	}
}

func (b *batch) stop() {
	for _, cmd := range b.cmds {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}
	b.cmds = nil
}

// bytes is how much was hashed since the start.
func (b *batch) bytes() uint64 {
	var blocks uint64
	for i := 0; i < len(b.counters); i += stride {
		blocks += binary.NativeEndian.Uint64(b.counters[i:])
	}
	return blocks * blockBytes
}

// maybeBatch is the other side: in a process that startBatch has started it works until it is killed.
func maybeBatch() {
	text, ok := os.LookupEnv(batchEnv)
	if !ok {
		return
	}
	var (
		index, blocks int
		sleep         time.Duration
		file          string
	)
	if _, err := fmt.Sscanf(text, "%d %d %d %s", &index, &blocks, &sleep, &file); err != nil {
		fmt.Fprintln(os.Stderr, "batch:", err)
		os.Exit(2)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, "batch:", err)
		os.Exit(2)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, (index+1)*stride, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		fmt.Fprintln(os.Stderr, "batch:", err)
		os.Exit(2)
	}
	counter := (*atomic.Uint64)(unsafe.Pointer(&m[index*stride]))
	block := make([]byte, blockBytes)
	nap := unix.NsecToTimespec(int64(sleep))
	for {
		for range blocks {
			sum := sha256.Sum256(block)
			copy(block, sum[:])
			counter.Add(1)
		}
		if sleep > 0 {
			_ = unix.Nanosleep(&nap, nil) // woken early is fine
		}
	}
}
