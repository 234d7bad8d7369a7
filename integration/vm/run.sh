#!/bin/sh
# `make test-vm`: boots Debian's kernel in QEMU, with or without KVM, and runs suites there.
#
#   integration/vm/run.sh [LANE...] [-- TEST]
#
#   engine     the engine of the shim alone, on pure cgroup v2
#   fast       pure cgroup v2 and AppArmor, in few minutes: the engine, the shim alone, the CRI's AppArmor
#   cgroup2    the same machine, and everything that has to do with the shim
#   systemd    systemd as init, cgroup v2
#   hybrid     systemd as init, cgroup v1 with the unified hierarchy beside it
#
# Without a lane: cgroup2, systemd, hybrid. With `-- TEST` only those of the ctr tests are run, with
# `-- shim TEST` or `-- cri TEST` those of the shim alone or of the CRI.
# CORTEN_UNDER_TEST=reference runs stock containerd and runc in the machine. CORTEN_VM_PROGRAMS names
# a directory with cortend, the shim, ctr-tests, shim-tests, cri-tests and engine-tests, to be run instead
# of a release build. CORTEN_VM_MINUTES is how long a machine may live, CORTEN_VM_PROCESSORS how many it
# has; CORTEN_VM_ACCEL=kvm does not emulate it. With CORTEN_VM_OPTIONAL a host that cannot have such a machine
# says why, and that is no failure. The last line is the sum of all lanes.
#
# The machine has no network; it lives in target/vm and a temporary directory. Its console is the
# output.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$(dirname "$here")")
cd "$top"
if [ "$(id -u)" != 0 ]; then
    echo 'makes device nodes and needs root, using sudo' >&2
    exec sudo --preserve-env=PATH,HOME,CARGO_HOME,RUSTUP_HOME,CORTEN_UNDER_TEST,CORTEN_VM_PROGRAMS,CORTEN_VM_MINUTES,CORTEN_VM_PROCESSORS,CORTEN_VM_ACCEL,CORTEN_VM_OPTIONAL "$0" "$@"
fi

if [ "$(uname -m)" != x86_64 ]; then
    echo 'not tried: only x86_64 machines are made here'
    exit 0
fi

lanes=
only=
while [ $# -gt 0 ]; do
    case $1 in
    --) shift; only=$*; break ;;
    engine | fast | cgroup2 | systemd | hybrid) lanes="$lanes $1" ;;
    *) echo "no such lane: $1" >&2; exit 2 ;;
    esac
    shift
done
[ -n "$lanes" ] || lanes='cgroup2 systemd hybrid'
vm=$top/target/vm
debian=$vm/debian
extra=
case $lanes in *systemd* | *hybrid*) extra=systemd ;; esac
case $lanes in *cgroup2*) extra="$extra criu" ;; esac
# shellcheck disable=SC2086
if ! integration/setup.sh vm $extra; then
    [ -n "${CORTEN_VM_OPTIONAL:-}" ] || exit 1
    echo 'not tried: QEMU or a kernel for it cannot be had here (see above)'
    exit 0
fi

work=$(mktemp -d)
qemu=
clean() {
    [ -z "$qemu" ] || kill "$qemu" 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

# The programs, as cargo names them; built only if `make test` has not done so.
programs=${CORTEN_VM_PROGRAMS:-}
tests=$work/corten/tests
mkdir -p "$tests" "$work/corten/bin"
if [ -n "$programs" ]; then
    for name in ctr shim cri; do
        cp "$programs/$name-tests" "$tests/$name"
    done
    cp "$programs/engine-tests" "$tests/containers"
    cp "$programs/cortend" "$programs/containerd-shim-corten-v2" "$work/corten/bin/"
else
    # In the words of `make test`, which has built them already; so this only names them.
    built=$(CARGO_TERM_COLOR=never integration/cargo-test.sh --no-run 2>&1) || { printf '%s\n' "$built" >&2; exit 1; }
    for name in ctr shim cri containers; do
        cp "$(printf '%s\n' "$built" | sed -n "s/^ *Executable tests\/$name\/main.rs (\(.*\))\$/\1/p")" "$tests/$name"
    done
    cp target/release/cortend target/release/containerd-shim-corten-v2 "$work/corten/bin/"
fi

kernel=$(ls "$debian"/boot/vmlinuz-* | sort -V | tail -n 1)
release=${kernel##*/vmlinuz-}
modules=$debian/lib/modules/$release

# --- the disk with our programs
corten=$work/corten
for dir in debian/usr/bin debian/usr/sbin debian/usr/lib bin; do
    mkdir -p "$corten/peers/$dir"
done
# Without containerd's own suite, which is not run here.
for program in target/peers/bin/*; do
    case $program in *.test | *-fp | *-fp-v1) ;; *) cp "$program" "$corten/peers/bin/" ;; esac
done
cp -r target/peers/debian/usr/lib/cni "$corten/peers/debian/usr/lib/"
cp target/peers/debian/usr/bin/ctr target/peers/debian/usr/bin/docker-registry "$corten/peers/debian/usr/bin/"
cp target/peers/debian/usr/sbin/runc "$corten/peers/debian/usr/sbin/"
cp "$here"/lane*.sh "$corten/"
strip --strip-debug "$corten"/tests/* "$corten"/bin/* 2>/dev/null || true

# Links in the new root lead to this machine's files: nothing may be written through one.
put() { cp --remove-destination -L "$1" "$2"; }

# Copies a program and the libraries it names, at the places where they are here.
take() {
    mkdir -p "$root$(dirname "$1")"
    put "$1" "$root$1"
    ldd "$1" 2>/dev/null | sed -n 's/.*[ \t]\(\/[^ ]*\) (0x.*/\1/p' | while read -r library; do
        [ -e "$root$library" ] || [ -L "$root$library" ] || { mkdir -p "$root$(dirname "$library")" && put "$library" "$root$library"; }
    done
}

# What every machine has beside its user land.
furnish() {
    mkdir -p "$root"/proc "$root"/sys "$root"/dev "$root"/run "$root"/tmp "$root"/var "$root"/root \
        "$root"/etc "$root"/bin "$root"/sbin "$root"/usr/bin "$root/lib/modules/$release" "$root"/usr/sbin
    # Drivers that containers and these tests may ask for; a whole tree would be most of the disk.
    for part in fs/overlayfs fs/fuse fs/erofs fs/squashfs fs/ext4 fs/jbd2 fs/mbcache.ko lib crypto drivers/block \
        drivers/net net arch/x86/crypto; do
        [ -e "$modules/kernel/$part" ] || continue
        mkdir -p "$root/lib/modules/$release/kernel/$(dirname $part)"
        cp -r "$modules/kernel/$part" "$root/lib/modules/$release/kernel/$part"
    done
    cp "$modules"/modules.* "$root/lib/modules/$release/"
    cp -rl "$corten" "$root/corten"
    for program in "$corten"/tests/* "$corten"/bin/* "$corten"/peers/bin/* "$corten"/peers/debian/usr/*bin/*; do
        ldd "$program" 2>/dev/null | sed -n 's/.*[ \t]\(\/[^ ]*\) (0x.*/\1/p'
    done | sort -u | while read -r library; do
        [ -e "$root$library" ] || [ -L "$root$library" ] || { mkdir -p "$root$(dirname "$library")" && put "$library" "$root$library"; }
    done
    mkdir -p "$root/etc/apparmor.d"
    cp -r "$debian/etc/apparmor" "$debian/etc/apparmor.d" "$root/etc/" 2>/dev/null || true
    mkdir -p "$root/usr/share"
    cp -r "$debian/usr/share/apparmor-features" "$root/usr/share/"
    put "$debian/sbin/apparmor_parser" "$root/sbin/apparmor_parser"
    rm -f "$root/etc/mtab" "$root/etc/resolv.conf" "$root/etc/hosts"
    ln -s /proc/self/mounts "$root/etc/mtab"
    echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
}

minimal() {
    furnish
    busybox=$(command -v busybox)
    put "$busybox" "$root/bin/busybox"
    "$busybox" --list-full | while read -r applet; do
        [ -e "$root/$applet" ] || [ -L "$root/$applet" ] || ln -s /bin/busybox "$root/$applet"
    done
    for name in unshare setsid mkfs.erofs ip openssl setpriv install id env ls criu tar gzip iptables-restore ip6tables-restore; do
        program=$(command -v $name) || continue
        rm -f "$root$program"
        take "$program"
    done
    # What CRIU asks of iptables-restore.
    for library in /usr/lib/*-linux-gnu/xtables/libxt_mark.so /usr/lib/*-linux-gnu/xtables/libxt_standard.so; do
        [ ! -e "$library" ] || take "$library"
    done
    # The libraries of a program, as its loader tells them: Debian's own ldd asks for bash.
    rm -f "$root/usr/bin/ldd"
    printf '#!/bin/sh\nLD_TRACE_LOADED_OBJECTS=1 exec "$1"\n' >"$root/usr/bin/ldd"
    chmod 755 "$root/usr/bin/ldd"
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\n' >"$root/etc/group"
    cp "$here/guest-init.sh" "$root/etc/corten-init"
    chmod 755 "$root/etc/corten-init"
    echo /etc/corten-init >"$root/etc/init"
}

# Debian's systemd, unpacked but never configured: what its packages' scripts would make is made here.
with_systemd() {
    cp -a "$vm/systemd/." "$root/"
    furnish
    [ -e "$root/bin/busybox" ] || put "$(command -v busybox)" "$root/bin/busybox"
    [ -e "$root/bin/sh" ] || ln -s bash "$root/bin/sh"
    for tool in modprobe awk grep sed; do
        [ -e "$root/bin/$tool" ] || [ -e "$root/sbin/$tool" ] || [ -e "$root/usr/bin/$tool" ] ||
            ln -s /bin/busybox "$root/bin/$tool"
    done
    rm -f "$root/etc/passwd" "$root/etc/group" "$root/etc/fstab" "$root/etc/hostname"
    printf 'root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nmessagebus:x:100:\n' >"$root/etc/group"
    for name in nobody:65534 systemd-network:101 systemd-resolve:102 systemd-timesync:103; do
        printf '%s:x:%s:%s::/:/bin/false\n' "${name%:*}" "${name#*:}" "${name#*:}" >>"$root/etc/passwd"
        printf '%s:x:%s:\n' "${name%:*}" "${name#*:}" >>"$root/etc/group"
    done
    printf 'nogroup:x:65534:\n' >>"$root/etc/group"
    printf 'tmpfs /var tmpfs mode=755 0 0\ntmpfs /root tmpfs mode=700 0 0\n' >"$root/etc/fstab"
    echo corten-vm >"$root/etc/hostname"
    units=$root/etc/systemd/system
    mkdir -p "$units"
    cat >"$units/corten-lane.service" <<UNIT
[Unit]
Description=The lane
Requires=basic.target
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/sh /corten/lane.sh
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
Delegate=yes
ExecStopPost=/bin/systemctl poweroff --force --force
UNIT
    echo /lib/systemd/systemd >"$root/etc/init"
}

# --- the ramdisk: what it takes to mount the disk
ramdisk() {
    ram=$work/ram
    mkdir -p "$ram/bin" "$ram/dev" "$ram/modules"
    cp "$(command -v busybox)" "$ram/bin/"
    ln -s busybox "$ram/bin/sh"
    cp "$here/initramfs-init.sh" "$ram/init"
    chmod 755 "$ram/init"
    mknod "$ram/dev/console" c 5 1
    : >"$ram/modules/order"
    for module in virtio_pci virtio_blk erofs ext4; do
        modprobe -d "$debian" -S "$release" --show-depends "$module" 2>/dev/null
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | while read -r file; do
        name=$(basename "$file")
        grep -qx "$name" "$ram/modules/order" && continue
        cp "$file" "$ram/modules/"
        echo "$name" >>"$ram/modules/order"
    done
    (cd "$ram" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/ram.cpio"
}

boot() {
    lane=$1 minutes=$2 words=$3
    accel="-accel tcg,thread=multi -cpu max"
    [ "${CORTEN_VM_ACCEL:-}" != kvm ] || accel="-accel kvm -cpu host"
    # shellcheck disable=SC2086
    timeout --foreground -k 5 "${CORTEN_VM_MINUTES:-$minutes}m" qemu-system-x86_64 \
        -M q35 $accel -smp "${CORTEN_VM_PROCESSORS:-2}" -m 3072 \
        -nodefaults -no-user-config -display none -no-reboot -serial stdio \
        -kernel "$kernel" -initrd "$work/ram.cpio" \
        -append "console=ttyS0 no_timer_check quiet loglevel=3 panic=-1 cgroup_no_v1=$4 apparmor=1 security=apparmor $words" \
        -drive "file=$work/disk,format=raw,if=virtio,readonly=on" \
        -drive "file=$work/scratch,format=raw,if=virtio,cache=unsafe,discard=unmap" </dev/null >"$work/console" 2>&1 &
    qemu=$!
    : >>"$work/console"
    # Whoever adds results up finds them in the last line alone.
    tail -c +1 --pid=$qemu -s 0.3 -f "$work/console" | sed -u 's/\r$//; s/^test result:/in the machine:/'
    echo
    wait "$qemu" || echo "the machine ended with status $?"
    qemu=
}

ramdisk
passed=0
failed=0
for lane in $lanes; do
    root=$work/root
    rm -rf "$root" "$work/disk" "$work/scratch" "$work/console"
    mkdir -p "$root"
    {
        echo "LANE=$lane THREADS=2"
        echo "ONLY='$only'"
        echo "export CORTEN_UNDER_TEST=${CORTEN_UNDER_TEST:-corten} CORTEN_PATIENCE=6"
    } >"$corten/lane.env"
    cp "$here/lane-systemd.sh" "$corten/lane-hybrid.sh"
    case $lane in
    engine | fast) minimal; minutes=15 words= off=all ;;
    cgroup2) minimal; minutes=60 words= off=all ;;
    systemd) with_systemd; minutes=20 off=all words='systemd.unified_cgroup_hierarchy=1 systemd.show_status=0 systemd.unit=corten-lane.service' ;;
    hybrid) with_systemd; minutes=20 off= words='systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0 systemd.show_status=0 systemd.unit=corten-lane.service' ;;
    esac
    mkfs.erofs --quiet "$work/disk" "$root" >/dev/null 2>&1 || mkfs.erofs "$work/disk" "$root"
    # Where the suites work: not every file system can do what they ask for, tmpfs least of all.
    truncate -s 4G "$work/scratch"
    mke2fs -q -F -t ext4 -O ^has_journal "$work/scratch"
    boot "$lane" "$minutes" "$words" "$off"
    # shellcheck disable=SC2046
    set -- $(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed in the machine.*/\1 \2/p' "$work/console")
    [ $# = 2 ] || { set -- 0 1; echo "lane $lane: the machine did not come to its end"; }
    [ "$2" = 0 ] || echo "lane $lane: FAILED"
    passed=$((passed + $1))
    failed=$((failed + $2))
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
