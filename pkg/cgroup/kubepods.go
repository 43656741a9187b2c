package cgroup

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// QoS is the Kubernetes QoS class that a pod's path tells.
type QoS string

const (
	Guaranteed QoS = "Guaranteed"
	Burstable  QoS = "Burstable"
	BestEffort QoS = "BestEffort"
)

// tiers are the kubelet's directories for the QoS classes that have one; Guaranteed pods sit beside them.
var tiers = map[string]QoS{"burstable": Burstable, "besteffort": BestEffort}

// KubePath is what the path of a pod's group, or of a group in it, tells.
type KubePath struct {
	Pod string // path of the pod's group
	UID string // of the pod, with dashes
	QoS QoS
	// Container is the path of the container's group, "" if the path is the pod's own or that of a helper ("crio-conmon-…").
	Container   string
	ContainerID string
	Runtime     string // what the runtime puts before the ID: cri-containerd, crio, docker, or "" for nothing
}

// ParsePath takes a group's path apart, of either cgroup driver:
//
//	/kubepods/burstable/pod0f3c…-…/9ad2…
//	/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f3c…_….slice/cri-containerd-9ad2….scope
//
// The kubelet's tree may be below another one (--cgroup-root). When trees are nested (Kubernetes in a pod) the outer one
// counts. ok is false if the path is not in a pod.
func ParsePath(group string) (p KubePath, ok bool) {
	parts := split(group)
	for i := range parts {
		depth, qos := kubepods(parts[i:])
		if depth == 0 {
			continue
		}
		pod := i + depth
		if pod == len(parts) {
			return KubePath{}, false // a tier
		}
		uid, isPod := podUID(parts[pod], parts[pod-1])
		if !isPod {
			return KubePath{}, false
		}
		p = KubePath{Pod: "/" + strings.Join(parts[:pod+1], "/"), UID: uid, QoS: qos}
		if pod+1 < len(parts) {
			if runtime, id, isContainer := containerName(parts[pod+1]); isContainer {
				p.Runtime, p.ContainerID, p.Container = runtime, id, p.Pod+"/"+parts[pod+1]
			}
		}
		return p, true
	}
	return KubePath{}, false
}

// kubepods tells how many of the leading parts are the kubelet's own groups (0: none, 1: the top, 2: a tier too) and the class
// of the pods right below.
func kubepods(parts []string) (depth int, qos QoS) {
	top := parts[0]
	name, isSlice := strings.CutSuffix(top, ".slice")
	if isSlice && name != "kubepods" && !strings.HasSuffix(name, "-kubepods") || !isSlice && name != "kubepods" {
		return 0, ""
	}
	if len(parts) > 1 {
		for tier, qos := range tiers {
			if isSlice && parts[1] == name+"-"+tier+".slice" || !isSlice && parts[1] == tier {
				return 2, qos
			}
		}
	}
	return 1, Guaranteed
}

// podUID reads the UID from a pod's directory below parent.
func podUID(dir, parent string) (uid string, ok bool) {
	if prefix, isSlice := strings.CutSuffix(parent, ".slice"); isSlice {
		uid, ok = strings.CutPrefix(dir, prefix+"-pod")
		if uid, isSlice = strings.CutSuffix(uid, ".slice"); !ok || !isSlice {
			return "", false
		}
		uid = strings.ReplaceAll(uid, "_", "-")
	} else if uid, ok = strings.CutPrefix(dir, "pod"); !ok {
		return "", false
	}
	return uid, onlyOf(uid, "-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
}

// runtimes are the prefixes whose IDs are believed whatever their length.
var runtimes = map[string]bool{"cri-containerd": true, "crio": true, "docker": true, "libpod": true}

// minID is how many hexadecimal digits make a name an ID where nothing else speaks for it. Real ones have 64.
const minID = 12

// containerName reads a container's directory: ID, runtime-ID, or either of them with ".scope".
func containerName(dir string) (runtime, id string, ok bool) {
	name := strings.TrimSuffix(dir, ".scope")
	id = name
	if i := strings.LastIndexByte(name, '-'); i >= 0 {
		runtime, id = name[:i], name[i+1:]
	}
	ok = onlyOf(id, "0123456789abcdef") && (runtimes[runtime] || len(id) >= minID) && !strings.HasSuffix(runtime, "conmon")
	if !ok {
		return "", "", false
	}
	return runtime, id, true
}

// onlyOf reports whether s consists of the characters in set, and of at least one.
func onlyOf(s, set string) bool { return s != "" && strings.Trim(s, set) == "" }

func split(group string) []string {
	group = strings.Trim(path.Clean("/"+group), "/")
	if group == "" {
		return nil
	}
	return strings.Split(group, "/")
}

// IsTier reports whether group is one of the kubelet's own: the top of its tree or a QoS class's.
func IsTier(group string) bool {
	parts := split(group)
	for i := range parts {
		if depth, _ := kubepods(parts[i:]); depth > 0 && i+depth == len(parts) {
			return true
		}
	}
	return false
}

// IsSystem reports whether group is one of systemd's own, which hold init, every service and every login: whoever is held back there
// takes the way to the machine with it. Single services below may be written.
func IsSystem(group string) bool {
	switch path.Clean("/" + group) {
	case "/init.scope", "/system.slice", "/user.slice":
		return true
	}
	return false
}

// CheckWritable says why the files of group must not be written: its name leads elsewhere, or it is the root, one of systemd's own,
// or one of the kubelet's own groups, whose values the kubelet rewrites every minute and needs for itself.
func CheckWritable(group string) error {
	switch {
	case !strings.HasPrefix(group, "/"):
		return fmt.Errorf("group %q: must be an absolute path under the controller's mount", group)
	case group == "/":
		return fmt.Errorf("group %q: the root group is never written", group)
	case path.Clean(group) != group || strings.ContainsRune(group, 0):
		return fmt.Errorf("group %q: must be a plain path without ., .. or empty parts", group)
	case IsSystem(group):
		return fmt.Errorf("group %q: holds the system's own processes and is never written", group)
	case IsTier(group):
		return fmt.Errorf("group %q: belongs to the kubelet and is never written", group)
	}
	return nil
}

// ExpandCgroupsPath turns the cgroupsPath of an OCI runtime spec into the group's path. With the systemd driver it has the form
// slice:prefix:name, and each dash in the slice's name is a directory:
//
//	kubepods-burstable-pod1.slice:cri-containerd:abc
//	/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope
//
// Anything else is a path already.
func ExpandCgroupsPath(cgroupsPath string) (string, error) {
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 || strings.ContainsRune(cgroupsPath, '/') {
		if cgroupsPath == "" || strings.Contains("/"+cgroupsPath+"/", "/../") {
			return "", fmt.Errorf("cgroupsPath %q: neither a path nor slice:prefix:name", cgroupsPath)
		}
		return path.Clean("/" + cgroupsPath), nil
	}
	slice, prefix, name := parts[0], parts[1], parts[2]
	if slice == "" {
		slice = "system.slice" // runc's default
	}
	dir, err := ExpandSlice(slice)
	if err != nil {
		return "", fmt.Errorf("cgroupsPath %q: %w", cgroupsPath, err)
	}
	switch {
	case name == "":
		return "", fmt.Errorf("cgroupsPath %q: no name after the second colon", cgroupsPath)
	case strings.HasSuffix(name, ".slice"):
		return path.Join(dir, name), nil
	case prefix == "":
		return path.Join(dir, name+".scope"), nil
	}
	return path.Join(dir, prefix+"-"+name+".scope"), nil
}

// ExpandSlice is the path of a systemd slice: "a-b.slice" is /a.slice/a-b.slice, "-.slice" the root.
func ExpandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || strings.ContainsRune(slice, '/') {
		return "", fmt.Errorf("%q is not the name of a slice", slice)
	}
	if name == "-" {
		return "/", nil
	}
	var dir, prefix strings.Builder
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("%q is not the name of a slice: a part between dashes is empty", slice)
		}
		prefix.WriteString(part)
		fmt.Fprintf(&dir, "/%s.slice", prefix.String())
		prefix.WriteByte('-')
	}
	return dir.String(), nil
}

// kubepodsDepth is how deep the kubelet's tree may hide: a node in a container has
// /system.slice/docker-<id>.scope/kubelet.slice/kubelet-kubepods.slice.
const kubepodsDepth = 4

// KubepodsRoots finds the tops of the kubelet's trees: usually one, /kubepods or /kubepods.slice; none when no pod ever ran.
func (h *Hierarchy) KubepodsRoots() ([]string, error) {
	var roots []string
	err := h.Walk(CPU, "/", func(group string) error {
		parts := split(group)
		if len(parts) == 0 {
			return nil
		}
		if depth, _ := kubepods(parts[len(parts)-1:]); depth > 0 {
			roots = append(roots, group)
			return fs.SkipDir
		}
		if len(parts) >= kubepodsDepth {
			return fs.SkipDir
		}
		return nil
	})
	return roots, err
}
