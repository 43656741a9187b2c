// Package chart renders the Helm chart as `helm template` does, with helm's own engine, for tests: golden files, the strict decoding
// of what comes out, and the pod that the end-to-end test runs.
package chart

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
	appsv1 "k8s.io/api/apps/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Namespace and release of everything that is rendered.
const (
	Namespace = "qos-agent"
	Release   = "qos-agent"
	// KubeVersion is that of the cluster that is rendered for.
	KubeVersion = "v1.34.0"
)

// Render renders the chart in dir with values (YAML, may be empty) over its own. The documents are in the order in which helm
// installs them.
func Render(dir string, values []byte) ([]byte, error) {
	c, err := loader.Load(dir)
	if err != nil {
		return nil, err
	}
	v, err := chartutil.ReadValues(values)
	if err != nil {
		return nil, err
	}
	caps := chartutil.DefaultCapabilities.Copy()
	// The library's own default is of 2020.
	kube, err := chartutil.ParseKubeVersion(KubeVersion)
	if err != nil {
		return nil, err
	}
	caps.KubeVersion = *kube
	top, err := chartutil.ToRenderValues(c, v, chartutil.ReleaseOptions{Name: Release, Namespace: Namespace, IsInstall: true}, caps)
	if err != nil {
		return nil, err
	}
	files, err := engine.Engine{Strict: true}.Render(c, top)
	if err != nil {
		return nil, err
	}
	for name := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			delete(files, name)
		}
	}
	_, manifests, err := releaseutil.SortManifests(files, caps.APIVersions, releaseutil.InstallOrder)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, m := range manifests {
		fmt.Fprintf(&out, "---\n# Source: %s\n%s\n", m.Name, strings.TrimSpace(m.Content))
	}
	return out.Bytes(), nil
}

// Documents splits YAML into its documents, without empty ones.
func Documents(text []byte) ([][]byte, error) {
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	var docs [][]byte
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, err
		}
		if len(bytes.TrimSpace(doc)) > 0 {
			docs = append(docs, doc)
		}
	}
}

// DaemonSet finds one by name among rendered documents.
func DaemonSet(text []byte, name string) (*appsv1.DaemonSet, error) {
	docs, err := Documents(text)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(docs, func(doc []byte) bool {
		var head appsv1.DaemonSet
		return yaml.Unmarshal(doc, &head) == nil && head.Kind == "DaemonSet" && head.Name == name
	})
	if i < 0 {
		return nil, fmt.Errorf("no DaemonSet %s is rendered", name)
	}
	var ds appsv1.DaemonSet
	return &ds, yaml.UnmarshalStrict(docs[i], &ds)
}
