#!/bin/sh
# Usage: deps.sh [PACKAGE...]
# Installs the Debian packages that tests and benches need, or of these only the named ones, if they are missing, in one go.
# Nothing is started by it, and nothing that was there is changed.
set -eu

# program or file -> package
missing=
wanted=" $* "
need() {
	case $wanted in "  " | *" $2 "*) ;; *) return ;; esac
	case $1 in
	/*) [ -e "$1" ] && return ;;
	*) command -v "$1" >/dev/null && return ;;
	esac
	case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}
PATH=$PATH:/usr/sbin:/sbin
need gcc gcc                                  # the race detector
need /usr/include/stdio.h libc6-dev
need git git
need qemu-system-x86_64 qemu-system-x86       # other kernels
need mkfs.ext4 e2fsprogs                      # a disk for a virtual machine
need /bin/busybox busybox-static              # in containers and virtual machines
need containerd containerd
need runc runc
need nginx nginx-light                        # online services
need redis-server redis-server
need memcached memcached
need stress-ng stress-ng                      # offline work
need runqlat libbpf-tools                     # independent eyes
need runqlat.bt bpftrace
need perf linux-perf
need xz xz-utils                              # offline work that is real
need zstd zstd
need pqos intel-cmt-cat
need ninja ninja-build                        # the rig, see test/rig
need g++ build-essential
need dpkg-source dpkg-dev
need patch patch
need meson meson
need pkg-config pkg-config
need flex flex
need bison bison
need python3 python3
need /usr/include/glib-2.0/glib.h libglib2.0-dev
need /usr/include/pixman-1/pixman.h libpixman-1-dev
need /usr/include/libfdt.h libfdt-dev
need /usr/include/zlib.h zlib1g-dev
need qemu-aarch64 qemu-user                   # the image's program for arm64
need promtool prometheus                      # promtool checks metrics and alerts, the server scrapes the agent
need chromium chromium                        # the live page, as people see it
need tmux tmux                                # a terminal for qos-agent top
missing=${missing# }

# A kernel for the virtual machine can only be found in a package index.
index=yes
[ $# != 0 ] || apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || index=

if [ -z "$missing" ] && [ -n "$index" ]; then
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "deps: missing: $missing; this machine has no apt-get, so install them yourself" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	[ -z "$missing" ] && exit 0
	echo "deps: missing: $missing; run as root: apt-get install $missing" >&2
	exit 1
fi

# Packages of daemons start them; a policy that says no keeps them from it (see invoke-rc.d(8)). Theirs, if there is one, stays.
policy=/usr/sbin/policy-rc.d
if [ -n "$missing" ] && [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	trap 'exit 1' HUP INT TERM
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi

export DEBIAN_FRONTEND=noninteractive
if ! apt-get update -q </dev/null; then
	echo "deps: apt-get update did not work: no network? Missing: ${missing:-only a package index}" >&2
	[ -z "$missing" ] || exit 1
fi
[ -z "$missing" ] && exit 0
echo "deps: installing $missing"
if ! apt-get install -q -y --no-install-recommends $missing </dev/null; then
	echo "deps: could not install: $missing" >&2
	exit 1
fi
