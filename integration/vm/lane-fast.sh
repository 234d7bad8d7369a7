# Sourced by lane.sh: what continuous integration has time for. Clients written in Go take seconds
# each where every instruction is translated, so here the tests themselves are the clients.
engine
shim --skip stress:: --skip streams:: --skip budget:: --skip systemd:: --skip ctr_finds --skip other::runc_
cri apparmor::
