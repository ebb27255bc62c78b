"""What people look at to see how the swarm fares."""
