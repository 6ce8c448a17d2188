"""Networks with plastic synapses: parameters, mean field, spiking network."""
