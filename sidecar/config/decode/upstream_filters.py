"""Lists of upstream HTTP filters, in which only the codec that ends every such list is known."""

from __future__ import annotations

from envoy.extensions.filters.http.upstream_codec.v3 import upstream_codec_pb2

from sidecar.config.decode.view import Fields, View

_TYPE: str = upstream_codec_pb2.UpstreamCodec.DESCRIPTOR.full_name


def upstream_filters(view: View, name: str) -> None:
    """Refuse every filter in the repeated field `name` but the codec and optional ones."""
    for each in view.subs(name, Fields("name typed_config is_optional disabled")):
        type_name, _ = each.any("typed_config")
        if type_name == _TYPE or each.flag("is_optional") or each.flag("disabled"):
            each.without_effect()
        else:
            each.error(f"upstream filter {each.text('name')} ({type_name}) is not supported; remove it")
