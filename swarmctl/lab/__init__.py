"""A swarm of real sshd hosts on this machine, for trying swarmctl and for its tests."""
