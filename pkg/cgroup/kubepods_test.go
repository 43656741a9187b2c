package cgroup_test

import (
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

const (
	uid  = "0f3c1b2a-5d4e-4f60-8a7b-9c0d1e2f3a4b"
	unit = "0f3c1b2a_5d4e_4f60_8a7b_9c0d1e2f3a4b"
	id   = "9ad2f1c0b3e4a5d6c7b8a9f0e1d2c3b4a5f6e7d8c9b0a1f2e3d4c5b6a7f8e9d0"
)

func TestParsePath(t *testing.T) {
	cgroupfs, systemd := "/kubepods/burstable/pod"+uid, "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod"+unit+".slice"
	guaranteed := "/kubepods.slice/kubepods-pod" + unit + ".slice"
	kind := "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + unit + ".slice"
	for group, want := range map[string]cgroup.KubePath{
		cgroupfs:                                  {Pod: cgroupfs, UID: uid, QoS: cgroup.Burstable},
		cgroupfs + "/":                            {Pod: cgroupfs, UID: uid, QoS: cgroup.Burstable},
		cgroupfs + "/" + id:                       {Pod: cgroupfs, UID: uid, QoS: cgroup.Burstable, Container: cgroupfs + "/" + id, ContainerID: id},
		cgroupfs + "/" + id + "/init":             {Pod: cgroupfs, UID: uid, QoS: cgroup.Burstable, Container: cgroupfs + "/" + id, ContainerID: id},
		cgroupfs + "/crio-" + id:                  {Pod: cgroupfs, UID: uid, QoS: cgroup.Burstable, Container: cgroupfs + "/crio-" + id, ContainerID: id, Runtime: "crio"},
		cgroupfs + "/kata_overhead":               {Pod: cgroupfs, UID: uid, QoS: cgroup.Burstable},
		"/kubepods/pod" + uid:                     {Pod: "/kubepods/pod" + uid, UID: uid, QoS: cgroup.Guaranteed},
		"/kubepods/pod" + strings.Repeat("a", 32): {Pod: "/kubepods/pod" + strings.Repeat("a", 32), UID: strings.Repeat("a", 32), QoS: cgroup.Guaranteed}, // static pods have a hash
		systemd: {Pod: systemd, UID: uid, QoS: cgroup.BestEffort},
		systemd + "/cri-containerd-" + id + ".scope":                   {Pod: systemd, UID: uid, QoS: cgroup.BestEffort, Container: systemd + "/cri-containerd-" + id + ".scope", ContainerID: id, Runtime: "cri-containerd"},
		systemd + "/cri-containerd-abc.scope":                          {Pod: systemd, UID: uid, QoS: cgroup.BestEffort, Container: systemd + "/cri-containerd-abc.scope", ContainerID: "abc", Runtime: "cri-containerd"},
		systemd + "/crio-" + id + ".scope":                             {Pod: systemd, UID: uid, QoS: cgroup.BestEffort, Container: systemd + "/crio-" + id + ".scope", ContainerID: id, Runtime: "crio"},
		systemd + "/docker-" + id + ".scope":                           {Pod: systemd, UID: uid, QoS: cgroup.BestEffort, Container: systemd + "/docker-" + id + ".scope", ContainerID: id, Runtime: "docker"},
		systemd + "/crio-conmon-" + id + ".scope":                      {Pod: systemd, UID: uid, QoS: cgroup.BestEffort},
		systemd + "/" + id + ".scope":                                  {Pod: systemd, UID: uid, QoS: cgroup.BestEffort, Container: systemd + "/" + id + ".scope", ContainerID: id},
		guaranteed:                                                     {Pod: guaranteed, UID: uid, QoS: cgroup.Guaranteed},
		kind:                                                           {Pod: kind, UID: uid, QoS: cgroup.Burstable},
		"/custom/kubepods/besteffort/pod" + uid:                        {Pod: "/custom/kubepods/besteffort/pod" + uid, UID: uid, QoS: cgroup.BestEffort},
		"/kubepods/pod" + uid + "/" + id + "/kubepods/besteffort/podx": {Pod: "/kubepods/pod" + uid, UID: uid, QoS: cgroup.Guaranteed, Container: "/kubepods/pod" + uid + "/" + id, ContainerID: id},
	} {
		got, ok := cgroup.ParsePath(group)
		if diff := cmp.Diff(want, got); diff != "" || !ok {
			t.Errorf("%s: %v (-want +got):\n%s", group, ok, diff)
		}
	}
	for _, group := range []string{
		"", "/", "/kubepods", "/kubepods/burstable", "/kubepods.slice", "/kubepods.slice/kubepods-burstable.slice", "/system.slice/ssh.service",
		"/kubepods/burstable/podd/../..", "/kubepods/pod", "/kubepods/burstable/x", "/mykubepods/pod" + uid, "/mykubepods.slice/mykubepods-pod" + unit + ".slice",
		"/kubepods.slice/kubepods-burstable.slice/kubepods-besteffort-pod" + unit + ".slice", "/kubepods.slice/kubepods-pod.slice", "/kubepods/podü",
	} {
		if got, ok := cgroup.ParsePath(group); ok {
			t.Errorf("%s is no pod but parses as %+v", group, got)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add("/kubepods/burstable/pod" + uid + "/" + id)
	f.Add("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + unit + ".slice/cri-containerd-" + id + ".scope")
	f.Add("//../kubepods/./podx")
	f.Fuzz(func(t *testing.T, group string) {
		p, ok := cgroup.ParsePath(group)
		if !ok {
			if p != (cgroup.KubePath{}) {
				t.Fatalf("%q is no pod, yet %+v", group, p)
			}
			return
		}
		clean := path.Clean("/" + group)
		if p.UID == "" || p.QoS == "" || clean != p.Pod && !strings.HasPrefix(clean, p.Pod+"/") {
			t.Fatalf("%q parses as %+v", group, p)
		}
		if again, ok := cgroup.ParsePath(p.Pod); !ok || again.UID != p.UID || again.QoS != p.QoS {
			t.Fatalf("the pod of %q, %s, parses as %+v", group, p.Pod, again)
		}
		if (p.Container == "") != (p.ContainerID == "") || p.Container != "" && path.Dir(p.Container) != p.Pod {
			t.Fatalf("the container of %q: %+v", group, p)
		}
		if !strings.ContainsRune(group, 0) && cgroup.CheckWritable(p.Pod) != nil {
			t.Fatalf("the pod of %q may not be written: %v", group, cgroup.CheckWritable(p.Pod))
		}
	})
}

func TestExpandCgroupsPath(t *testing.T) {
	for in, want := range map[string]string{
		"kubepods-burstable-pod1.slice:cri-containerd:abc": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope",
		"kubepods-pod0_1.slice:crio:abc":                   "/kubepods.slice/kubepods-pod0_1.slice/crio-abc.scope",
		"system.slice:docker:abc":                          "/system.slice/docker-abc.scope",
		":docker:abc":                                      "/system.slice/docker-abc.scope",
		"-.slice:p:abc":                                    "/p-abc.scope",
		"a.slice::abc":                                     "/a.slice/abc.scope",
		"a.slice:p:a-b.slice":                              "/a.slice/a-b.slice",
		"/kubepods/burstable/pod1/abc":                     "/kubepods/burstable/pod1/abc",
		"kubepods/pod1/abc/":                               "/kubepods/pod1/abc",
		"/k8s.io/abc":                                      "/k8s.io/abc",
		"/a:b:c/d":                                         "/a:b:c/d",
	} {
		if got, err := cgroup.ExpandCgroupsPath(in); err != nil || got != want {
			t.Errorf("%s expands to %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "a:b:c", "a--b.slice:p:n", "-a.slice:p:n", ".slice:p:n", "a.slice:p:", "../x", "/a/../../b"} {
		if got, err := cgroup.ExpandCgroupsPath(in); err == nil {
			t.Errorf("%q expands to %q, want an error", in, got)
		}
	}
}

func FuzzExpandCgroupsPath(f *testing.F) {
	f.Add("kubepods-burstable-pod1.slice:cri-containerd:abc")
	f.Add("/kubepods/pod1/abc")
	f.Add("-.slice::..")
	f.Fuzz(func(t *testing.T, in string) {
		got, err := cgroup.ExpandCgroupsPath(in)
		if err == nil && (!strings.HasPrefix(got, "/") || path.Clean(got) != got) {
			t.Fatalf("%q expands to %q", in, got)
		}
	})
}

func TestCheckWritable(t *testing.T) {
	for _, bad := range []string{
		"", "/", "pod", "/a/../b", "/a/..", "/a//b", "/a/", "/./a", "/a\x00b", "/kubepods", "/kubepods/besteffort", "/kubepods/burstable", "/kubepods.slice",
		"/kubepods.slice/kubepods-besteffort.slice", "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice", "/kubelet/kubepods",
	} {
		if cgroup.CheckWritable(bad) == nil {
			t.Errorf("%q may be written", bad)
		}
	}
	for _, good := range []string{"/demo/web", "/system.slice/db.service", "/kubepods/pod" + uid, "/kubepods/besteffort/pod" + uid + "/" + id, "/kubepods/burstable/burstable"} {
		if err := cgroup.CheckWritable(good); err != nil {
			t.Error(err)
		}
	}
}

func TestKubepodsRoots(t *testing.T) {
	f := cgrouptest.NewFake(t, cgroup.Unified)
	for _, g := range []string{
		"/kubepods.slice", "/kubepods.slice/kubepods-burstable.slice", "/system.slice", "/system.slice/docker-x.scope",
		"/system.slice/docker-x.scope/kubelet", "/system.slice/docker-x.scope/kubelet/kubepods", "/system.slice/docker-x.scope/kubelet/kubepods/kubepods",
	} {
		if err := f.Mkdir(g); err != nil {
			t.Fatal(err)
		}
	}
	got, err := f.Hierarchy().KubepodsRoots()
	want := []string{"/kubepods.slice", "/system.slice/docker-x.scope/kubelet/kubepods"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
