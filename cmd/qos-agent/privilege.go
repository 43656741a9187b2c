package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/pods"
	"github.com/qos-agent/qos-agent/internal/privilege"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
)

// dropCapabilities keeps what the loop still needs: the real-time class, which it leaves and takes again; hardware counters of
// containers to come; BPF where the kernel (before 5.19) asks for it at every call; and leave to touch files that root may not.
// What was dropped cannot be had again. Failing to drop it is no reason not to protect anybody.
func (c *runCmd) dropCapabilities(p parts, tracer *ebpf.Tracer, report capability.Report) {
	var keep []privilege.Value
	log := p.log
	if c.Realtime {
		keep = append(keep, privilege.Nice)
	}
	if report.Has(capability.Perf) {
		keep = append(keep, privilege.Perfmon)
		if err := privilege.Only(func() error { return capability.Count(p.hierarchy, "/sys") }, privilege.Perfmon); err != nil {
			log.Info("CAP_SYS_ADMIN is kept: this kernel wants it for hardware counters while kernel.perf_event_paranoid is above 2", "error", err)
			keep = append(keep, privilege.Admin)
		}
	}
	if tracer != nil {
		if err := privilege.Without(func() error { return tracer.Stats(new(ebpf.Stats)) }); err != nil {
			log.Info("CAP_BPF is kept: this kernel wants it for reading statistics of BPF programs", "error", err)
			keep = append(keep, privilege.BPF)
		}
	}
	if p.classes != nil && p.policy.At(time.Now()).RDT.Mount {
		keep = append(keep, privilege.Admin) // to unmount in the end what it may have mounted
	}
	// The directories of resctrl are read-only even to root, who has to make groups in them.
	if err := privilege.Without(c.checkFiles); err != nil || report.Has(capability.Resctrl) {
		log.Info("CAP_DAC_OVERRIDE is kept", "resctrl", report.Has(capability.Resctrl), "error", err)
		keep = append(keep, privilege.DACOverride)
	}
	dropped, err := privilege.Keep(keep...)
	if err != nil {
		log.Warn("all capabilities are kept", "error", err)
		return
	}
	log.Info("gave up", "capabilities", dropped, "kept", privilege.Held())
}

// checkFiles reports whether the calling thread may use the files that are used all the time.
func (c *runCmd) checkFiles() error {
	const read, write = unix.R_OK, unix.R_OK | unix.W_OK
	files := map[string]uint32{c.RunDir: write, c.DecisionLogDir: write, c.PolicyDir: read, c.StaticPods: read, c.APIWebConfig: read, c.APITokenFile: read}
	if c.PolicyDir != "" {
		inside, err := filepath.Glob(filepath.Join(c.PolicyDir, "*"))
		if err != nil {
			return err
		}
		for _, name := range inside {
			files[name] = read
		}
	}
	if c.Pods == "cri" {
		for _, endpoint := range c.endpoints() {
			socket, err := pods.Socket(endpoint)
			if err != nil {
				return err
			}
			if err := unix.Faccessat(unix.AT_FDCWD, socket, write, unix.AT_EACCESS); errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("%s: %w", socket, err)
			}
		}
	}
	for name, mode := range files {
		if name == "" {
			continue
		}
		if err := unix.Faccessat(unix.AT_FDCWD, name, mode, unix.AT_EACCESS); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
