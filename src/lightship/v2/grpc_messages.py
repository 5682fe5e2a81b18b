"""The messages of ``v2_grpc.proto`` as classes, in a descriptor pool of our own.

A client library for the same protocol in the same process describes the same names in the process's common pool, in its
own words; there the two would clash. So nothing here is registered anywhere, and no generated code is needed: the
compiled description is data (``v2_grpc.binpb``), which any version of protobuf reads.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]  # no types

__all__ = ["message_class"]


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    data = resources.files("lightship.v2").joinpath("v2_grpc.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@cache
def message_class(name: str) -> Any:
    """Return the class of the message ``name``, e.g. ``ModelInferRequest``."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))
