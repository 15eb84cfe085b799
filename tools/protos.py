"""Writes src/redline/serve/proto/descriptors.py from the .proto files beside it.

python tools/protos.py            # needs grpcio-tools
"""

from __future__ import annotations

import base64
import tempfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "src" / "redline" / "serve" / "proto"
NAMES = ("model_config.proto", "inference.proto")  # what is imported comes first
HEAD = '''"""Generated from the .proto files beside it; do not edit. Run: make protos"""

import base64
import zlib

_PACKED = (
'''
TAIL = """)

FILES: tuple[bytes, ...] = tuple(
    zlib.decompress(base64.b85decode(text)) for text in "".join(_PACKED).split()
)
"""


def compile_protos() -> list[bytes]:
    """The serialised FileDescriptorProto of every file, in the order of NAMES."""
    from google.protobuf import descriptor_pb2
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set.binpb"
        # "redline/" keeps the names of our files apart from those of every client.
        arguments = ["protoc", f"-Iredline={FOLDER}", f"--descriptor_set_out={out}"]
        if protoc.main([*arguments, *(f"redline/{name}" for name in NAMES)]):
            raise SystemExit("protoc refused the .proto files, see above")
        found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    by_name = {file.name: file.SerializeToString(deterministic=True) for file in found.file}
    return [by_name[f"redline/{name}"] for name in NAMES]


def page(files: list[bytes]) -> str:
    """The text of descriptors.py."""
    packed = " ".join(base64.b85encode(zlib.compress(data, 9)).decode() for data in files)
    lines = [f"    {packed[at : at + 88]!r},\n" for at in range(0, len(packed), 88)]
    return HEAD + "".join(lines) + TAIL


def main() -> None:
    """Write the file."""
    path = FOLDER / "descriptors.py"
    path.write_text(page(compile_protos()), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
