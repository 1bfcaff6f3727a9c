"""What a pair of sidecars costs, beside a pair of Envoys that run the same two configuration files."""
