"""Hosts reached over SSH: surveyed in one round trip, converged over a bounded pool, tunnelled to."""
