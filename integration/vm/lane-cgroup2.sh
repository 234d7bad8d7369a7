# Sourced by lane.sh: pure cgroup v2 and AppArmor, without systemd.
engine
for suite in kernel:: run:: limits:: security:: tasks:: terminal:: events:: restart::; do
    ctr "$suite"
done
