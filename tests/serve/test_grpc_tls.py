"""TLS and mutual TLS of the gRPC front."""

import datetime
import ipaddress

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_fakes import serving

grpcclient = pytest.importorskip("tritonclient.grpc")
PEM = serialization.Encoding.PEM


def certificate(name, issuer=None):
    """(certificate, key) in PEM; signed by itself, or by `issuer`: (certificate, key) in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signer, signed_by = key, subject
    if issuer:
        signer = serialization.load_pem_private_key(issuer[1], None)
        signed_by = x509.load_pem_x509_certificate(issuer[0]).subject
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signed_by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    return made.public_bytes(PEM), key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain)


@pytest.fixture(scope="module")
def ca():
    return certificate("a test's own authority")


@pytest.fixture(scope="module")
def pair(ca):
    return certificate("localhost", ca)


def is_live(url, credentials):
    with grpc.secure_channel(url, credentials) as channel:
        stub = grpcclient.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return stub.ServerLive(grpcclient.service_pb2.ServerLiveRequest(), timeout=30).live


def test_tls(ca, pair):
    credentials = grpc.ssl_server_credentials([(pair[1], pair[0])])
    with serving(credentials=credentials) as running:
        assert is_live(running.url, grpc.ssl_channel_credentials(ca[0]))
        other = certificate("somebody else")
        with pytest.raises(grpc.RpcError) as caught:
            is_live(running.url, grpc.ssl_channel_credentials(other[0]))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        with (
            grpcclient.InferenceServerClient(running.url) as plain,
            pytest.raises(grpcclient.InferenceServerException),
        ):
            plain.is_server_live(client_timeout=30)


def test_mutual_tls(ca, pair):
    credentials = grpc.ssl_server_credentials(
        [(pair[1], pair[0])], root_certificates=ca[0], require_client_auth=True
    )
    with serving(credentials=credentials) as running:
        mine = certificate("a client", ca)
        assert is_live(running.url, grpc.ssl_channel_credentials(ca[0], mine[1], mine[0]))
        stranger = certificate("a stranger", certificate("another authority"))
        for wrong in (
            grpc.ssl_channel_credentials(ca[0]),
            grpc.ssl_channel_credentials(ca[0], stranger[1], stranger[0]),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                is_live(running.url, wrong)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
