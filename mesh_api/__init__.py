"""What sidecar and control plane share: SPIFFE ids, names, the signing RPC. Nothing else."""
