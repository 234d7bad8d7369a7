#!/bin/busybox sh
# pid 1 of the machine without systemd: mounts what a host has, runs the lane, and ends the machine.
PATH=/bin:/sbin:/usr/bin:/usr/sbin
export PATH
mount -t proc -o nosuid,noexec,nodev proc /proc
mount -t sysfs -o nosuid,noexec,nodev sys /sys
mount -t securityfs none /sys/kernel/security
mount -t bpf -o mode=700 none /sys/fs/bpf
mount -t cgroup2 -o nsdelegate none /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /dev/mqueue
ln -s /proc/self/fd /dev/fd
for name in 0:stdin 1:stdout 2:stderr; do
    ln -s "fd/${name%:*}" "/dev/${name#*:}"
done
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t mqueue none /dev/mqueue
for dir in /run /var /root; do
    mount -t tmpfs -o mode=755 tmpfs $dir
done
mount --make-rshared /
hostname corten-vm
ifconfig lo up
# As a service manager does it: the root group has no processes, so that controllers can be given on.
mkdir /sys/fs/cgroup/init
echo 1 >/sys/fs/cgroup/init/cgroup.procs
sh /corten/lane.sh </dev/null >/dev/console 2>&1
sync
poweroff -f
