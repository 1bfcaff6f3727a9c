"""The load balancing policy of a cluster: Envoy's `load_balancing_policy` list, or the older `lb_policy`."""

from __future__ import annotations

from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.load_balancing_policies.round_robin.v3 import round_robin_pb2
from envoy.extensions.load_balancing_policies.wrr_locality.v3 import wrr_locality_pb2

from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import Discovery, LbPolicy

PEAK_EWMA_TYPE = "envoy.extensions.load_balancing_policies.peak_ewma.v3alpha.PeakEwma"
"""Contrib extension without bindings: known by its name, its settings are without effect."""
_ROUND_ROBIN_TYPE: str = round_robin_pb2.RoundRobin.DESCRIPTOR.full_name
_LEAST_REQUEST_TYPE: str = least_request_pb2.LeastRequest.DESCRIPTOR.full_name
_WRR_LOCALITY_TYPE: str = wrr_locality_pb2.WrrLocality.DESCRIPTOR.full_name

_LOCALITY = Fields("", "locality_weighted_lb_config")
_LEAST_REQUEST = Fields("choice_count locality_lb_config selection_method", "", "enable_full_scan")
_LEGACY = {
    "ROUND_ROBIN": LbPolicy.ROUND_ROBIN,
    "LEAST_REQUEST": LbPolicy.LEAST_REQUEST,
    # Envoy reads the list below whatever lb_policy says.
    "LOAD_BALANCING_POLICY_CONFIG": LbPolicy.ROUND_ROBIN,
}


def lb_policy(view: View, discovery: Discovery) -> LbPolicy:
    """The policy of a cluster: CLUSTER_PROVIDED for ORIGINAL_DST, which has nothing to choose from, and only
    there."""
    if discovery is Discovery.ORIGINAL_DST:
        view.choice("lb_policy", {"CLUSTER_PROVIDED": None}, None)
        if view.has("load_balancing_policy"):
            view.error("not for a cluster of type ORIGINAL_DST; remove it", "load_balancing_policy")
        return LbPolicy.ROUND_ROBIN
    if view.has("load_balancing_policy"):
        return _first_supported(view.sub("load_balancing_policy"))
    policy = view.choice("lb_policy", _LEGACY, LbPolicy.ROUND_ROBIN)
    if view.has("least_request_lb_config"):
        _choice_count(view.sub("least_request_lb_config", Fields("choice_count")))
    return policy


def _first_supported(view: View) -> LbPolicy:
    names = []
    for policy in view.subs("policies", Fields("typed_extension_config")):
        extension = policy.sub("typed_extension_config", Fields("name typed_config"))
        type_name, message = extension.any("typed_config")
        names.append(type_name)
        if type_name == PEAK_EWMA_TYPE:
            return LbPolicy.PEAK_EWMA
        if message is None:
            continue
        if type_name == _WRR_LOCALITY_TYPE:
            message.check(Fields("endpoint_picking_policy"))
            return _first_supported(message.sub("endpoint_picking_policy"))
        if type_name == _ROUND_ROBIN_TYPE:
            message.check(Fields("locality_lb_config"))
            message.sub("locality_lb_config", _LOCALITY)
            return LbPolicy.ROUND_ROBIN
        if type_name == _LEAST_REQUEST_TYPE:
            message.check(_LEAST_REQUEST)
            message.sub("locality_lb_config", _LOCALITY)
            message.choice("selection_method", {"N_CHOICES": None}, None)
            _choice_count(message)
            return LbPolicy.LEAST_REQUEST
    view.error(
        f"none of {', '.join(names) or 'no policies'} is supported; supported are RoundRobin, LeastRequest, "
        "WrrLocality and contrib PeakEwma",
        "policies",
    )
    return LbPolicy.ROUND_ROBIN


def _choice_count(view: View) -> None:
    if view.number("choice_count", 2) != 2:
        view.error("only 2, the default, is supported", "choice_count")
