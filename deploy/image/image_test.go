package image_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/qos-agent/qos-agent/deploy/image"
)

const name = "docker.io/library/qos-agent:test"

// build writes the image from sources in a directory, and gives the path of the archive.
func build(t *testing.T, source string) string {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "qos-agent.tar")
	err := image.Write(t.Context(), archive, image.Options{
		Source: source, Version: "v1.2.3", Name: name, Platforms: []string{"amd64", "arm64"}, Created: time.Unix(1700000000, 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// TestReproducible builds twice, the second time from a copy of the sources at another path, under another umask-like mode of files.
func TestReproducible(t *testing.T) {
	first := build(t, "../..")
	other := filepath.Join(t.TempDir(), "elsewhere")
	if out, err := exec.Command("sh", "-c", `mkdir "$1" && cd ../.. && tar c --exclude=./.git --exclude=./dist --exclude=./bin . | tar x --mode=0700 -C "$1"`, "sh", other).CombinedOutput(); err != nil {
		t.Fatalf("copy sources: %v\n%s", err, out)
	}
	second := build(t, other)
	for _, file := range []string{"qos-agent.tar", "qos-agent-amd64.cdx.json", "qos-agent-arm64.cdx.json"} {
		a, b := read(t, filepath.Join(filepath.Dir(first), file)), read(t, filepath.Join(filepath.Dir(second), file))
		if !bytes.Equal(a, b) {
			t.Errorf("%s: two builds differ", file)
		}
	}
	t.Run("archive", func(t *testing.T) { checkArchive(t, first) })
	t.Run("bill of materials", func(t *testing.T) { checkBOM(t, filepath.Dir(first)) })
}

func checkArchive(t *testing.T, archive string) {
	dir := t.TempDir()
	if out, err := exec.Command("tar", "xf", archive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 3 {
		t.Fatalf("%d entries, want the image and two bills of materials", len(manifest.Manifests))
	}
	for _, key := range []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"} {
		if got := manifest.Manifests[0].Annotations[key]; got != name {
			t.Errorf("%s is %q", key, got)
		}
	}
	index, err := top.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	platforms, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	subjects := map[string]bool{}
	for _, d := range manifest.Manifests[1:] {
		bom, err := top.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		m, err := bom.Manifest()
		if err != nil || m.Subject == nil {
			t.Fatalf("bill of materials refers to nothing: %v", err)
		}
		subjects[m.Subject.Digest.String()] = true
	}
	var found []string
	for _, d := range platforms.Manifests {
		found = append(found, d.Platform.String())
		if !subjects[d.Digest.String()] {
			t.Errorf("%s has no bill of materials", d.Platform)
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, img, d.Platform.Architecture)
	}
	if diff := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, found); diff != "" {
		t.Error(diff)
	}
}

func checkImage(t *testing.T, img v1.Image, arch string) {
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Architecture != arch || c.Config.Entrypoint[0] != "/usr/bin/qos-agent" {
		t.Errorf("%s: config %+v", arch, c)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%s: %d layers %v", arch, len(layers), err)
	}
	whole, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(whole)
	if err != nil || len(text)%512 != 0 || !bytes.Equal(text[len(text)-1024:], make([]byte, 1024)) {
		t.Errorf("%s: the layer is no complete tar: %d bytes, %v", arch, len(text), err)
	}
	files := mutate.Extract(img)
	defer files.Close()
	sizes := map[string]int64{}
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Mode&0o022 != 0 || h.Mode&0o6000 != 0 || h.ModTime.Unix() != 1700000000 {
			t.Errorf("%s: %s: owner %d:%d, mode %o, time %v", arch, h.Name, h.Uid, h.Gid, h.Mode, h.ModTime)
		}
		if h.Typeflag == tar.TypeReg {
			sizes[h.Name] = h.Size
		}
		if h.Name == "usr/bin/qos-agent" {
			checkProgram(t, r, arch)
		}
	}
	programs := slices.DeleteFunc(slices.Collect(maps.Keys(sizes)), func(n string) bool { return !strings.HasPrefix(n, "usr/bin/") })
	if diff := cmp.Diff([]string{"usr/bin/qos-agent"}, programs); diff != "" {
		t.Errorf("%s: programs:\n%s", arch, diff)
	}
	if sizes["usr/share/qos-agent/policies/default.yaml"] == 0 {
		t.Errorf("%s: the ready-made policies are missing", arch)
	}
}

// checkProgram runs the agent of the image, that of the other architecture in an emulator of programs.
func checkProgram(t *testing.T, program io.Reader, arch string) {
	t.Run("run "+arch, func(t *testing.T) {
		text, err := io.ReadAll(program)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "qos-agent")
		if err := os.WriteFile(file, text, 0o755); err != nil {
			t.Fatal(err)
		}
		command := []string{file, "version"}
		if arch != runtime.GOARCH {
			emulator := map[string]string{"arm64": "qemu-aarch64", "amd64": "qemu-x86_64"}[arch]
			if _, err := exec.LookPath(emulator); err != nil {
				t.Skip("needs qemu-user: runs programs of other architectures")
			}
			command = append([]string{emulator}, command...)
		}
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "qos-agent v1.2.3 ") || !strings.HasSuffix(strings.TrimSpace(string(out)), "linux/"+arch) {
			t.Errorf("%q: %v %s", command, err, out)
		}
	})
}

// checkBOM holds a bill of materials against what the go command says is linked in.
func checkBOM(t *testing.T, dir string) {
	var bom struct {
		BOMFormat, SpecVersion string
		Components             []struct{ Name, Version, PURL string }
	}
	if err := json.Unmarshal(read(t, filepath.Join(dir, "qos-agent-arm64.cdx.json")), &bom); err != nil {
		t.Fatal(err)
	}
	if bom.BOMFormat != "CycloneDX" || bom.SpecVersion != "1.6" {
		t.Errorf("%s %s", bom.BOMFormat, bom.SpecVersion)
	}
	cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if .Version}}{{.Path}} {{.Version}}{{end}}{{end}}", "-tags=timetzdata", "./cmd/qos-agent")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(string(out)), "\n")
	want = slices.DeleteFunc(want, func(line string) bool { return line == "" })
	slices.Sort(want)
	want = slices.Compact(want)
	var got []string
	for _, c := range bom.Components {
		if c.PURL != "pkg:golang/"+c.Name+"@"+c.Version {
			t.Errorf("%s: purl %s", c.Name, c.PURL)
		}
		if c.Name != "std" {
			got = append(got, c.Name+" "+c.Version)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modules (- go list, + bill of materials):\n%s", diff)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
