from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from upt_protos.oip import open_inference_pb2
from upt_protos.v1 import admin_pb2, inference_pb2

ROOT = Path(inference_pb2.__file__).parents[2]
STUBS = {
    "upt_protos/oip/open_inference.proto": open_inference_pb2,
    "upt_protos/v1/admin.proto": admin_pb2,
    "upt_protos/v1/inference.proto": inference_pb2,
}


def test_every_proto_file_has_its_stubs() -> None:
    assert {str(file.relative_to(ROOT)) for file in ROOT.rglob("*.proto")} == set(STUBS)


@pytest.mark.parametrize("source", STUBS)
def test_the_stubs_are_those_of_the_proto_file(source: str, tmp_path: Path) -> None:
    output = tmp_path / "descriptors"
    assert protoc.main(["protoc", f"-I{ROOT}", f"--descriptor_set_out={output}", source]) == 0
    (parsed,) = FileDescriptorSet.FromString(output.read_bytes()).file
    generated = FileDescriptorProto.FromString(STUBS[source].DESCRIPTOR.serialized_pb)
    for message in parsed.message_type:
        forget_json_names(message)
    assert generated == parsed


def forget_json_names(message: DescriptorProto) -> None:
    """Clear what protoc writes into descriptors and not into stubs."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        forget_json_names(nested)
