#!/bin/sh
# Run as the first process of a board's own namespaces: put its file system together, then become its sshd.
# $FOLDER/own holds its keys. What it is told comes by environment: ROOT SHAPE FOLDER NAME GROUPS_OF_BOARD DISK_MB QEMU_CPU.
set -eu
for file in $GROUPS_OF_BOARD; do echo 0 >"$file"; done
mount --make-rprivate /
hostname "$NAME"
ip link set lo up
# The board's disk: what it writes stays in $FOLDER/disk over a restart; a small one is a tmpfs that fills up.
if [ "$DISK_MB" != 0 ]; then mount -t tmpfs -o "size=${DISK_MB}m" disk "$FOLDER/disk"; fi
mkdir -p "$FOLDER/disk/upper" "$FOLDER/disk/work"
mount -t overlay -o "lowerdir=$FOLDER/own:$ROOT,upperdir=$FOLDER/disk/upper,workdir=$FOLDER/disk/work" board "$FOLDER/root"
cd "$FOLDER/root"
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
for node in null zero full random urandom tty; do touch "dev/$node"; mount --bind "/dev/$node" "dev/$node"; done
ln -s /proc/self/fd dev/fd
mkdir -m 1777 dev/shm
mount -t tmpfs shm dev/shm
if [ -n "$SHAPE" ]; then
    mount --bind "$SHAPE/sys" sys
    for file in cpuinfo meminfo; do mount --bind "$SHAPE/proc/$file" "proc/$file"; done
    if [ -f "$SHAPE/etc/nv_tegra_release" ]; then cp "$SHAPE/etc/nv_tegra_release" etc/; fi
else
    mount --rbind /sys sys
fi
exec chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin ${QEMU_CPU:+QEMU_CPU="$QEMU_CPU"} \
    /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config ${QEMU_CPU:+-o SetEnv=QEMU_CPU="$QEMU_CPU"}
