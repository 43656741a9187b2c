package image

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const bomType types.MediaType = "application/vnd.cyclonedx+json"

// billOfMaterials lists what is in the program, as CycloneDX 1.6: the Go release and the modules that the linker has recorded in
// it, with their checksums. It is made from the program and not from go.mod, so that it says what is there.
func billOfMaterials(program []byte, o Options, arch string) ([]byte, error) {
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return nil, err
	}
	main := cdx.Component{
		BOMRef: "pkg:golang/" + info.Main.Path + "@" + o.Version, Type: cdx.ComponentTypeApplication, Name: "qos-agent", Version: o.Version,
		PackageURL: fmt.Sprintf("pkg:golang/%s@%s?goarch=%s&goos=linux", info.Main.Path, o.Version, arch),
		Licenses:   &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
	}
	components := []cdx.Component{component("std", strings.TrimPrefix(info.GoVersion, "go"), "")}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		components = append(components, component(m.Path, m.Version, m.Sum))
	}
	needs := make([]string, len(components))
	for i, c := range components {
		needs[i] = c.BOMRef
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: o.Created.UTC().Format(time.RFC3339), Component: &main}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: main.BOMRef, Dependencies: &needs}}
	var buf bytes.Buffer
	enc := cdx.NewBOMEncoder(&buf, cdx.BOMFileFormatJSON)
	enc.SetPretty(true)
	if err := enc.EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func component(module, version, sum string) cdx.Component {
	url := "pkg:golang/" + module + "@" + version
	c := cdx.Component{BOMRef: url, Type: cdx.ComponentTypeLibrary, Name: module, Version: version, PackageURL: url}
	if sum != "" { // the hash that go.sum and the checksum database know, which is no plain hash of a file
		c.Properties = &[]cdx.Property{{Name: "go:sum", Value: sum}}
	}
	return c
}

// attach makes an artifact of a bill of materials that refers to its image, as OCI 1.1 has it: registries list it among the
// image's referrers.
func attach(subject v1.Image, bom []byte, created time.Time) (mutate.IndexAddendum, error) {
	to, err := partial.Descriptor(subject)
	if err != nil {
		return mutate.IndexAddendum{}, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), bomType)
	img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(bom, bomType), MediaType: bomType})
	if err != nil {
		return mutate.IndexAddendum{}, err
	}
	// The subject last: every other change forgets it.
	described := mutate.Annotations(img, map[string]string{"org.opencontainers.image.created": created.UTC().Format(time.RFC3339)})
	described = mutate.Subject(described, v1.Descriptor{MediaType: to.MediaType, Size: to.Size, Digest: to.Digest})
	return mutate.IndexAddendum{Add: described.(v1.Image), Descriptor: v1.Descriptor{ArtifactType: string(bomType)}}, nil
}
