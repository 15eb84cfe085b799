"""Our messages against those that the client was built with."""

import pytest
from google.protobuf import descriptor_pb2

import protos
from redline.serve import proto
from redline.serve.proto import descriptors

client = pytest.importorskip("tritonclient.grpc")


def test_the_generated_file_is_current():
    pytest.importorskip("grpc_tools")
    parse = descriptor_pb2.FileDescriptorProto.FromString
    made = [parse(data) for data in protos.compile_protos()]
    assert made == [parse(data) for data in descriptors.FILES], "run: make protos"


def fields(message):
    told = {}
    for field in message.fields:
        kind = field.message_type or field.enum_type
        told[field.name] = (
            field.number, field.type, field.is_repeated, kind and kind.full_name,
            field.containing_oneof and field.containing_oneof.name,
        )  # fmt: skip
    return told


def everything(messages):
    for message in messages:
        yield message
        yield from everything(message.nested_types)


@pytest.mark.parametrize("file", ["service_pb2", "model_config_pb2"])
def test_every_field_has_the_clients_number_and_type(file):
    theirs = getattr(client, file).DESCRIPTOR
    found = list(everything(theirs.message_types_by_name.values()))
    assert len(found) > 40
    for message in found:
        ours = fields(proto.POOL.FindMessageTypeByName(message.full_name))
        assert fields(message).items() <= ours.items(), message.full_name
    for enum in theirs.enum_types_by_name.values():
        ours = proto.POOL.FindEnumTypeByName(enum.full_name)
        assert {v.name: v.number for v in enum.values} == {v.name: v.number for v in ours.values}


def test_every_method_has_the_clients_messages():
    theirs = client.service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert {method.name for method in theirs} <= set(proto.METHODS)
    for method in theirs:
        ours = proto.METHODS[method.name]
        for what in ("client_streaming", "server_streaming"):
            assert getattr(ours, what) == getattr(method, what)
        for what in ("input_type", "output_type"):
            assert getattr(ours, what).full_name == getattr(method, what).full_name


def test_our_messages_are_not_in_the_default_pool():
    assert proto.POOL.FindMessageTypeByName("inference.ModelInferRequest") is not (
        client.service_pb2.ModelInferRequest.DESCRIPTOR
    )
