package containerd

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// imageName is the image of every container, the sandboxes included. Its tag is not "latest", so that nobody wants to pull it.
const imageName = "qos-agent.test/busybox:1"

// applets are the commands that containers may use by name.
var applets = []string{"sh", "sleep", "cat", "echo", "true", "kill", "yes", "dd", "date"}

// busyboxImage makes a docker archive with one layer that holds the machine's static busybox.
func busyboxImage() ([]byte, error) {
	name, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if err := static(busybox); err != nil {
		return nil, fmt.Errorf("%s: %w (apt-get install busybox-static)", name, err)
	}
	var layer archive
	layer.dir("bin/")
	layer.dir("tmp/")
	layer.file("bin/busybox", 0o755, busybox)
	for _, a := range applets {
		layer.link("bin/"+a, "busybox")
	}
	layerTar := layer.done()
	config := map[string]any{
		"architecture": goarch(busybox),
		"os":           "linux",
		"config": map[string]any{
			"Env":        []string{"PATH=/bin"},
			"Entrypoint": []string{"/bin/sleep", "2147483647"}, // what a sandbox runs
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layerTar))}},
	}
	var image archive
	image.file("layer.tar", 0o644, layerTar)
	image.json("config.json", config)
	image.json("manifest.json", []map[string]any{{"Config": "config.json", "RepoTags": []string{imageName}, "Layers": []string{"layer.tar"}}})
	return image.done(), image.err
}

// static is an error if a program needs a loader that the image does not have.
func static(program []byte) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("not static")
		}
	}
	return nil
}

func goarch(program []byte) string {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err == nil && f.Machine == elf.EM_AARCH64 {
		return "arm64"
	}
	return "amd64"
}

// archive is a tar file in memory. Its first error sticks.
type archive struct {
	buf bytes.Buffer
	w   *tar.Writer
	err error
}

func (a *archive) add(h *tar.Header, data []byte) {
	if a.w == nil {
		a.w = tar.NewWriter(&a.buf)
	}
	if a.err == nil {
		a.err = a.w.WriteHeader(h)
	}
	if a.err == nil {
		_, a.err = a.w.Write(data)
	}
}

func (a *archive) dir(name string) {
	a.add(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o777}, nil)
}

func (a *archive) file(name string, mode int64, data []byte) {
	a.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}, data)
}

func (a *archive) link(name, to string) {
	a.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, nil)
}

func (a *archive) json(name string, v any) {
	data, err := json.Marshal(v)
	if a.err == nil {
		a.err = err
	}
	a.file(name, 0o644, data)
}

func (a *archive) done() []byte {
	if a.err == nil {
		a.err = a.w.Close()
	}
	return a.buf.Bytes()
}
