"""A certificate authority and a server certificate for 127.0.0.1, made by openssl for one test run."""

import subprocess
from pathlib import Path


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """(authority, server's certificate chain, server's key), all PEM, the key PKCS8 as Kafka wants it."""
    authority, key, chain = folder / "ca.pem", folder / "server.key", folder / "server.pem"
    authority_key, request, extensions = folder / "ca.key", folder / "server.csr", folder / "extensions"

    def openssl(*words: str | Path) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", authority_key, "-out", authority, "-days", "2", "-subj", "/CN=ca")
    openssl("req", *curve, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1")
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl("x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-CAcreateserial",
            "-days", "2", "-extfile", extensions, "-out", chain)
    return authority, chain, key
