"""Making what a plan still lacks: here, on a Ray cluster, in several processes; and saying how far it is."""
