# Sourced by lane.sh: what continuous integration has time for. Clients written in Go take seconds
# each where every instruction is translated, so there are few of them.
engine
ctr kernel:: --skip systemd --skip reload --skip annotations --skip _unit --skip one_process \
    --skip default_profile --skip sees_its_own
