#!/bin/sh
# First program of the machine: finds the disk with the real root and goes there.
/bin/busybox mkdir -p /proc /sys /dev /new
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do
    /bin/busybox insmod "/modules/$module"
done </modules/order
/bin/busybox mount -t erofs -o ro /dev/vda /new || exec /bin/busybox poweroff -f
/bin/busybox mount -t ext4 /dev/vdb /new/tmp
/bin/busybox mount --move /dev /new/dev
/bin/busybox umount /proc
for word in $(/bin/busybox cat /new/etc/init); do
    exec /bin/busybox switch_root /new "$word"
done
