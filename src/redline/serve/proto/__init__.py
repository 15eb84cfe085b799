"""The messages of the gRPC protocol, in a descriptor pool of our own.

Clients register the same names ("inference.ModelInferRequest") in the process's default pool, with
other contents in every version; a private pool lets both live in one process.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]

from redline.serve.proto.descriptors import FILES

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"


def new_pool() -> DescriptorPool:
    """A pool with our files and no others."""
    pool = DescriptorPool()
    for file in FILES:
        pool.AddSerializedFile(file)
    return pool


POOL = new_pool()
METHODS: dict[str, Any] = dict(POOL.FindServiceByName(SERVICE).methods_by_name)


def message(name: str) -> Any:
    r"""The class of a message.

    Raises:
        KeyError: there is no such message.

    Example:
        >>> message("ServerLiveResponse")(live=True).SerializeToString()
        b'\x08\x01'
    """
    return GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
