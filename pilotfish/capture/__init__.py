"""Transparent capture: rules in a pod's network namespace that redirect its TCP to the sidecar.

The init container's image runs it: nothing here may import more than the standard library and
`mesh_api.names`.
"""
