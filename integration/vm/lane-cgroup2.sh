# Sourced by lane.sh: pure cgroup v2 and AppArmor, without systemd. The older client says the same
# things to the same shim: `make test` has it, and here it would be a quarter of an hour.
engine
shim --skip systemd::
cri apparmor::
for suite in kernel:: run:: limits:: security:: tasks:: terminal:: events:: checkpoint:: restart::; do
    ctr "$suite" --skip ctr_1.6
done
