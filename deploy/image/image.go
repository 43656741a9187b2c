// Package image builds the agent's container image without a container engine: it compiles the agent for each platform, puts it
// into one layer on nothing, and writes an OCI archive (a tar of an OCI image layout) that containerd, CRI-O, podman, skopeo and
// crane read. The same sources, Go release and options give the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Options say what to build.
type Options struct {
	Source    string    // the agent's module
	Version   string    // shown by `qos-agent version`
	Name      string    // of the image, with tag: "qos-agent:v1"
	Platforms []string  // of GOARCH: amd64, arm64
	Created   time.Time // of the image and of every file in it; it is an input, or else no two builds would be the same
	GoFlags   []string  // more flags of go build, for tests
}

// binary is where the agent is in the image. It is in PATH, so that `kubectl exec POD -- qos-agent doctor` works.
const binary = "usr/bin/qos-agent"

// Write builds the image, and writes the archive and beside it one bill of materials a platform: archive.tar gives
// archive-amd64.cdx.json.
func Write(ctx context.Context, archive string, o Options) error {
	var index v1.ImageIndex = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var boms []mutate.IndexAddendum
	for _, arch := range o.Platforms {
		program, err := compile(ctx, o, arch)
		if err != nil {
			return err
		}
		img, err := o.image(program, arch)
		if err != nil {
			return fmt.Errorf("image for %s: %w", arch, err)
		}
		platform := &v1.Platform{OS: "linux", Architecture: arch}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
		bom, err := billOfMaterials(program, o, arch)
		if err != nil {
			return fmt.Errorf("bill of materials for %s: %w", arch, err)
		}
		ext := filepath.Ext(archive)
		if err := os.WriteFile(archive[:len(archive)-len(ext)]+"-"+arch+".cdx.json", bom, 0o644); err != nil {
			return err
		}
		attached, err := attach(img, bom, o.Created)
		if err != nil {
			return fmt.Errorf("bill of materials for %s: %w", arch, err)
		}
		boms = append(boms, attached)
	}
	// The names by which containerd (first) and everybody else find the image in a layout.
	top := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index, Descriptor: v1.Descriptor{Annotations: map[string]string{
		"io.containerd.image.name":          o.Name,
		"org.opencontainers.image.ref.name": o.Name,
	}}})
	return writeLayout(archive, mutate.AppendManifests(top, boms...))
}

// image is the agent for one platform. It runs as root: the files of control groups, the runtime's socket and the journal belong
// to root. What root may do besides is for the pod to take away; see docs/security.md.
func (o *Options) image(program []byte, arch string) (v1.Image, error) {
	layer, err := o.layer(program)
	if err != nil {
		return nil, err
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: arch, Created: v1.Time{Time: o.Created}, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: []string{"/" + binary}, Cmd: []string{"run"}, Env: []string{"PATH=/usr/bin"}, WorkingDir: "/", User: "0:0",
			Labels: map[string]string{
				"org.opencontainers.image.title":    "qos-agent",
				"org.opencontainers.image.version":  o.Version,
				"org.opencontainers.image.licenses": "Apache-2.0",
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(img, mutate.Addendum{Layer: layer, MediaType: types.OCILayer, History: v1.History{
		Created: v1.Time{Time: o.Created}, CreatedBy: "make image", Comment: "qos-agent " + o.Version,
	}})
}

// layer is all there is in the image: the agent, its licence, the ready-made policies, and names for user 0.
func (o *Options) layer(program []byte) (v1.Layer, error) {
	files := map[string][]byte{
		binary:       program,
		"etc/passwd": []byte("root:x:0:0:root:/:/sbin/nologin\n"),
		"etc/group":  []byte("root:x:0:\n"),
	}
	licence, err := os.ReadFile(filepath.Join(o.Source, "LICENSE"))
	if err != nil {
		return nil, err
	}
	files["usr/share/doc/qos-agent/LICENSE"] = licence
	policies, err := filepath.Glob(filepath.Join(o.Source, "policies", "*.yaml"))
	if err != nil {
		return nil, err
	}
	for _, name := range policies {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		files["usr/share/qos-agent/policies/"+filepath.Base(name)] = text
	}
	// run/qos-agent is there for a mount: the root of the container is read-only.
	text, err := tree(files, []string{"run/qos-agent", "tmp"}, o.Created)
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil },
		tarball.WithMediaType(types.OCILayer))
}

// tree is a tar of files and directories, in order, all of root's.
func tree(files map[string][]byte, dirs []string, created time.Time) ([]byte, error) {
	mode := map[string]int64{}
	for _, d := range dirs {
		mode[d] = 0o755
	}
	for name := range files {
		mode[name] = 0o644
	}
	mode[binary] = 0o755
	names := map[string]bool{}
	for name := range mode {
		for ; name != "."; name = path.Dir(name) {
			names[name] = true
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		h := &tar.Header{Name: name, Mode: cmp.Or(mode[name], 0o755), ModTime: created, Format: tar.FormatPAX}
		text, isFile := files[name]
		if isFile {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(text))
		} else {
			h.Typeflag, h.Name = tar.TypeDir, name+"/"
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(text); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil { // writes the end of the archive
		return nil, err
	}
	return buf.Bytes(), nil
}
