package sim

import (
	"bytes"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestDocsAreUpToDate: what docs/ shows is what the scenarios do now.
func TestDocsAreUpToDate(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("needs amd64: other processors round the last digit of the model's logarithms differently, which moves pictures")
	}
	files, err := Docs()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("docs/%s is not what go generate ./internal/sim makes (%v)", name, err)
		}
	}
	have, _ := filepath.Glob(filepath.Join("..", "..", "docs", "scenarios", "*"))
	if len(have) != len(files)-1 {
		t.Errorf("%d pictures, want %d", len(have), len(files)-1)
	}
}

func TestPicturesAreSound(t *testing.T) {
	svg := run(t, "antagonist-arrives").SVG()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		_, err := d.Token()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if s := string(svg); strings.Contains(s, "NaN") || strings.Contains(s, "Inf") || len(svg) > 64<<10 {
		t.Errorf("a picture of %d bytes", len(svg))
	}
}
