"""A replay of traffic over simulated unequal hosts, with swarmctl's very routing code and with its peers'
policies."""
