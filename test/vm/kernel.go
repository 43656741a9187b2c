package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ErrNoKernel says that Debian's package index offers no kernel of the version asked for and none is cached.
var ErrNoKernel = errors.New("no such kernel in apt's index or in the cache")

// Kernel is an unpacked kernel of Debian.
type Kernel struct {
	Package string // "linux-image-6.1.0-56-cloud-amd64-unsigned"
	Image   string // path of vmlinuz
}

// CacheDir is where unpacked kernels are kept between runs: outside the tree, for a clean must not cost a download.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "qos-agent"), nil
}

// DebianKernel gives the newest kernel of a series ("6.1", "6.12") that apt offers, downloading and unpacking it on the first
// call. When apt offers none, the newest one in the cache is taken. Debian's "cloud" flavour is taken because it is small and
// has everything we need built in; it differs from the standard flavour in drivers only.
func DebianKernel(ctx context.Context, cache, series string) (Kernel, error) {
	names := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `\.[0-9][0-9.+a-z-]*-cloud-amd64(-unsigned)?$`)
	dir := filepath.Join(cache, "kernels")
	offered, err := offeredPackages(ctx, names)
	if err != nil {
		return Kernel{}, err
	}
	if len(offered) == 0 {
		cached, err := filepath.Glob(filepath.Join(dir, "linux-image-*"))
		if err != nil {
			return Kernel{}, err
		}
		for _, c := range cached {
			if names.MatchString(filepath.Base(c)) {
				offered = append(offered, filepath.Base(c))
			}
		}
	}
	if len(offered) == 0 {
		return Kernel{}, fmt.Errorf("kernel %s: %w", series, ErrNoKernel)
	}
	pkg := slices.MaxFunc(offered, compareVersions)
	if err := unpack(ctx, dir, pkg); err != nil {
		return Kernel{}, fmt.Errorf("kernel package %s: %w", pkg, err)
	}
	images, err := filepath.Glob(filepath.Join(dir, pkg, "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, fmt.Errorf("kernel package %s holds %d kernels, want 1", pkg, len(images))
	}
	return Kernel{Package: pkg, Image: images[0]}, nil
}

// offeredPackages lists the packages that apt can download now.
func offeredPackages(ctx context.Context, names *regexp.Regexp) ([]string, error) {
	if _, err := exec.LookPath("apt-cache"); err != nil {
		return nil, nil
	}
	out, err := exec.CommandContext(ctx, "apt-cache", "pkgnames", "linux-image-").Output()
	if err != nil {
		return nil, fmt.Errorf("apt-cache pkgnames: %w", err)
	}
	var offered []string
	for _, name := range strings.Fields(string(out)) {
		// An installed package that the index has no more is listed too; apt-cache show tells what can be downloaded.
		if names.MatchString(name) {
			show, err := exec.CommandContext(ctx, "apt-cache", "show", name).Output()
			if err == nil && strings.Contains(string(show), "\nFilename:") {
				offered = append(offered, name)
			}
		}
	}
	return offered, nil
}

var number = regexp.MustCompile(`[0-9]+`)

// compareVersions orders package names by the numbers in them; of two with the same numbers the unsigned one is the greater,
// because the signed one lags behind after a security update.
func compareVersions(a, b string) int {
	x, y := number.FindAllString(a, -1), number.FindAllString(b, -1)
	for i := range min(len(x), len(y)) {
		m, _ := strconv.Atoi(x[i])
		n, _ := strconv.Atoi(y[i])
		if c := cmp.Compare(m, n); c != 0 {
			return c
		}
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(len(a), len(b)))
}

// unpack puts the package's /boot into dir/pkg. The directory appears in one step, so a run that was cut short leaves no half.
func unpack(ctx context.Context, dir, pkg string) error {
	final := filepath.Join(dir, pkg)
	if _, err := os.Stat(final); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, ".unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := run(ctx, tmp, "apt-get", "download", "-q", pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download left %d packages, want 1", len(debs))
	}
	if err := run(ctx, tmp, "dpkg-deb", "-x", debs[0], "tree"); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tmp, "tree", "boot"), final); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, lastLine(out))
	}
	return nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
