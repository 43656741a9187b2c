#!/bin/sh
# build.sh OUT: builds the QEMU of the rig (see README.md) from Debian 12's source package and leaves OUT/qemu-system-x86_64 and
# OUT/share. It takes about two minutes on two cores. The source comes through an apt configuration of its own, in OUT, so the
# system's stays as it is. What building needs is in ../deps.sh.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 1 ] || { echo "usage: build.sh OUT" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$out/work
rm -rf "$work"
mkdir -p "$work/apt/parts" "$work/apt/lists/partial"
cd "$work"

# The machine's own archives, asked for sources instead of programs.
for f in /etc/apt/sources.list.d/*.sources; do
	[ -e "$f" ] && sed 's/^Types:.*/Types: deb-src/' "$f" >"apt/parts/$(basename "$f")"
done
if [ -e /etc/apt/sources.list ]; then
	sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >apt/parts/sources.list
fi
own="-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=$work/apt/parts -o Dir::State::Lists=$work/apt/lists -o APT::Sandbox::User=root"
apt-get $own -q update
version=$(apt-cache $own showsrc qemu | sed -n 's/^Version: \(1:7\.2+.*\)/\1/p' | sort -V | tail -n 1)
[ -n "$version" ] || { echo "build.sh: no source package of QEMU 7.2, for which the patch is, in these archives" >&2; exit 3; }
apt-get $own -q source --download-only "qemu=$version"
dpkg-source --no-check -x qemu_7.2+dfsg-*.dsc src
patch -d src -p1 <"$here/rdt-pmu.patch"

mkdir build
cd build
../src/configure --target-list=x86_64-softmmu --without-default-features \
	--without-default-devices --with-devices-x86_64=rdt --enable-system \
	--enable-tcg --disable-kvm --enable-fdt=system --disable-tools \
	--disable-docs --disable-guest-agent --disable-install-blobs \
	--disable-werror --disable-debug-info --with-git-submodules=ignore \
	--audio-drv-list=
nice -n 19 ninja qemu-system-x86_64
strip -o "$out/qemu-system-x86_64" qemu-system-x86_64

# Firmware: three files of two Debian packages.
cd "$work"
apt-get -q -o APT::Sandbox::User=root download qemu-system-data seabios
for d in qemu-system-data_*.deb seabios_*.deb; do dpkg-deb -x "$d" fw; done
mkdir -p "$out/share/qemu" "$out/share/seabios"
cp -L fw/usr/share/qemu/linuxboot_dma.bin fw/usr/share/qemu/kvmvapic.bin "$out/share/qemu/"
cp -L fw/usr/share/seabios/bios-256k.bin "$out/share/seabios/"
"$out/qemu-system-x86_64" --version
rm -rf "$work"
