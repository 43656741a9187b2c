package capability

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// resctrl reads what the mounted file system says of the CPU. It never mounts: that would switch the feature on for the machine.
func (p *prober) resctrl(context.Context) (string, error) {
	root := filepath.Join(p.Sys, "fs/resctrl")
	if _, err := os.Stat(filepath.Join(root, "schemata")); err != nil {
		known, err := os.ReadFile(filepath.Join(p.Proc, "filesystems"))
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(known)) {
			if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == "resctrl" {
				return "", advise(errors.New("the CPU and the kernel have it, but it is not mounted"), "mount -t resctrl resctrl "+root)
			}
		}
		return "", errors.New("this CPU or this kernel does not have it")
	}
	info := func(name string) string {
		text, err := os.ReadFile(filepath.Join(root, "info", name))
		if err != nil {
			return ""
		}
		return strings.Join(strings.Fields(string(text)), " ")
	}
	var found []string
	for _, cache := range []string{"L3", "L3CODE", "L2"} {
		if mask := info(cache + "/cbm_mask"); mask != "" {
			found = append(found, fmt.Sprintf("%s ways %s in %s classes", cache, mask, info(cache+"/num_closids")))
		}
	}
	if step := info("MB/bandwidth_gran"); step != "" {
		found = append(found, fmt.Sprintf("MB from %s in steps of %s", info("MB/min_bandwidth"), step))
	}
	if features := info("L3_MON/mon_features"); features != "" {
		found = append(found, "monitors "+features)
	}
	if len(found) == 0 {
		return "", errors.New("mounted, but it controls and monitors nothing")
	}
	return strings.Join(found, ", "), nil
}
