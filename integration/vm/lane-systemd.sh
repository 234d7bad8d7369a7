# Sourced by lane.sh: systemd as init, on whatever cgroups it was told to make.
shim systemd::
shim limits::
ctr kernel::
