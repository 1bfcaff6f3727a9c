"""HTTP/1.1 behind the codec interface; what the rest of the sidecar imports of it.

The server side is `h1_server.py`, the client side `h1_client.py`, what both share `h1_stream.py`; heads
are read in `h1_wire.py` and written in `h1_write.py`, chunked bodies read in `h1_chunked.py`.
"""

from sidecar.protocol.h1_client import H1ClientCodec
from sidecar.protocol.h1_server import H1ServerCodec
from sidecar.protocol.h1_stream import CLOSED_BEFORE_RESPONSE
from sidecar.protocol.h1_wire import H1Options

__all__ = ["CLOSED_BEFORE_RESPONSE", "H1ClientCodec", "H1Options", "H1ServerCodec"]
