#!/bin/sh
# The duties of PID 1, for real: boots KERNEL in QEMU (TCG) with examples/pid1_check.rs as /init, a base image and a
# blank disk. QEMU has no vsock of its own, so the check talks over a Unix socket inside the guest.
# ICOUNT=1 makes its COUNT lines numbers of guest instructions.
# Usage: guest/agent/tests/qemu.sh KERNEL BUSYBOX   (needs qemu-system-x86_64, mkfs.ext4, cpio; root for mknod)
set -eu
kernel=$1 busybox=$2
for tool in qemu-system-x86_64 mkfs.ext4 cpio; do
    command -v "$tool" >/dev/null || { echo "SKIPPED: no $tool here"; exit 0; }
done
target=x86_64-unknown-linux-gnu
RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
    cargo build --profile agent -p agent --example pid1_check --target $target
built=${CARGO_TARGET_DIR:-target}/$target/agent/examples/pid1_check
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
mkdir -p "$place/ird/dev" "$place/root/bin" "$place/root/etc" "$place/root/lowdir" "$place/root/run/app/deep" "$place/root/home/app"
cp "$built" "$place/ird/init"
mknod "$place/ird/dev/console" c 5 1
cp "$busybox" "$place/root/bin/busybox"
for applet in sh cat cut date echo env false hostname id ls mv readlink rm sleep sort stat stty test touch tr true tty; do
    ln -s busybox "$place/root/bin/$applet"
done
printf 'root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n' > "$place/root/etc/passwd"
echo old > "$place/root/etc/old"
echo inside > "$place/root/lowdir/inside"
chown 1000 "$place/root/run/app"
chmod 750 "$place/root/run/app"
mkfs.ext4 -q -d "$place/root" "$place/base.img" 16M
mkfs.ext4 -q "$place/disk.img" 64M
(cd "$place/ird" && find . | cpio -o -H newc --quiet > "$place/ird.cpio")
timeout "${LIMIT:-60}" qemu-system-x86_64 -M microvm,acpi=off,rtc=on,pit=on,pic=on,auto-kernel-cmdline=on,isa-serial=on \
    -accel tcg ${ICOUNT:+-icount shift=0,sleep=off} -cpu Nehalem,+rdrand,+erms -m 512 -nodefaults -no-user-config -nographic -serial stdio -no-reboot \
    -kernel "$kernel" -initrd "$place/ird.cpio" \
    -drive if=none,id=base,format=raw,readonly=on,file="$place/base.img" -device virtio-blk-device,drive=base \
    -drive if=none,id=disk,format=raw,file="$place/disk.img" -device virtio-blk-device,drive=disk \
    -append "console=ttyS0 reboot=t panic=-1 quiet tsc=reliable smolvm.rootfs=ext4 smolvm.hostname=check" | tee "$place/console"
grep -q "CHECK all passed" "$place/console"
# The disk was left clean: nothing to recover.
e2fsck -fn "$place/disk.img"
