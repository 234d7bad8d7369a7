# Sourced by lane.sh: pure cgroup v2 and AppArmor, without systemd.
engine
shim --skip systemd::
cri apparmor::
for suite in kernel:: run:: limits:: security:: tasks:: terminal:: events:: checkpoint:: restart::; do
    ctr "$suite"
done
