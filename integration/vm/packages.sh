# What the machine of `make test-vm` is made of. Sourced by integration/setup.sh, whose functions it
# uses: QEMU is installed, the rest only unpacked below target/vm.

# Debian's kernel for virtual machines: small, and with everything containers need.
want_kernel() {
    set -- "$peers"/debian/boot/vmlinuz-*
    [ -e "$1" ] && return 0
    apt_update
    meta=linux-image-cloud-amd64
    kernel=$(apt-cache depends --important $meta | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    [ -n "$kernel" ] || die "apt knows no $meta"
    want_unpacked "$kernel" "boot/vmlinuz-${kernel#linux-image-}"
    depmod -b "$peers/debian" "${kernel#linux-image-}"
}

# systemd and what it needs, as an unpacked tree: it boots without ever having been configured.
want_systemd() {
    tree=$peers/systemd
    [ -e "$tree/.complete" ] && return 0
    apt_update
    say "unpacking Debian's systemd with all it needs into $tree"
    rm -rf "$tree"
    mkdir -p "$tree" "$peers/cache/systemd"
    list=$(apt-get install -s --no-install-recommends -o Dir::State::status=/dev/null \
        systemd dbus coreutils bash util-linux mount procps | sed -n 's/^Inst \([^ ]*\).*/\1/p')
    # shellcheck disable=SC2086
    (cd "$peers/cache/systemd" && apt-get download -qq $list 2>/dev/null)
    for deb in "$peers"/cache/systemd/*.deb; do
        dpkg -x "$deb" "$tree"
    done
    touch "$tree/.complete"
}

peers=$top/target/vm
want_packages qemu-system-x86 erofs-utils busybox-static kmod
want_kernel
want_unpacked apparmor sbin/apparmor_parser
case " $* " in *" systemd "*) want_systemd ;; esac
case " $* " in *" criu "*) want_packages criu iptables ;; esac
