"""The control plane: watches configuration, issues identities, pushes xDS."""
