# Sourced by lane.sh: the engine alone, in a minute.
engine
