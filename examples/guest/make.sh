#!/bin/sh
# Makes a guest from source as Buildroot does: Linux with linux.fragment, and a root of busybox, both from Debian's source
# packages, without root rights. Needs: gcc make flex bison bc perl zstd xz-utils libelf-dev dpkg-dev.
#
#   make.sh [WORK]      bzImage and rootfs.tar go beside this file; WORK (./work) may be removed afterwards
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$here/work}
mkdir -p "$work/lists/partial" "$work/sources" && cd "$work"
work=$PWD

# Debian's binary package of the kernel's source needs no deb-src line; busybox's source does: one of our own.
linux=$(apt-cache depends linux-source | sed -n 's/.*Depends: //p')
test -e "$linux.tar.xz" || {
    apt-get download "$linux"
    dpkg-deb --fsys-tarfile "$linux"_*.deb | tar x --strip-components=3 "./usr/src/$linux.tar.xz"
}
test -e busybox || {
    sed 's/^Types: deb$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >sources/debian.sources
    apt="apt-get -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=$work/sources -o Dir::State::lists=$work/lists
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache="
    $apt update
    $apt source --download-only busybox
    mkdir busybox && tar x -C busybox --strip-components=1 -f busybox_*.orig.tar.*
}

# The kernel: nothing but what the fragment asks for.
test -e "$linux" || tar xf "$linux.tar.xz"
make -s -C "$linux" O="$work/kernel" tinyconfig
cat "$here/linux.fragment" >>kernel/.config
make -s -C "$linux" O="$work/kernel" olddefconfig
make -s -C "$linux" O="$work/kernel" -j"$(nproc)" bzImage
cp kernel/arch/x86/boot/bzImage "$here/"

# The root: a static busybox and four files. smolvm's agent is PID 1 and makes /dev, /proc, /sys and /run.
make -s -C busybox defconfig
sed -i 's/.*CONFIG_STATIC is not set/CONFIG_STATIC=y/' busybox/.config
make -s -C busybox -j"$(nproc)" busybox
make -s -C busybox CONFIG_PREFIX="$work/root" install
cd root
mkdir -p etc dev proc sys run tmp root var/log usr/share/udhcpc
echo 'root:x:0:0:root:/root:/bin/sh' >etc/passwd
echo 'root:x:0:' >etc/group
echo 'NAME=guest' >etc/os-release
chmod 1777 tmp
tar c --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -f "$here/rootfs.tar" .
echo "made: $here/bzImage $here/rootfs.tar"
