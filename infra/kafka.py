"""What every client of Kafka here does alike: where the brokers are and who we are to them, a producer whose
acknowledged records are kept, silence, watermarks.

Four libraries talk to Kafka here; each is told the same of the settings, in its own words: `kafka_options` librdkafka,
`java_options` Flink's connector, `python_options` kafka-python, and `jobs.faust_app` Faust. The password stays in its
file: TaskManagers read it themselves, so that no job graph holds it.

A record is acknowledged by all replicas and written once per call; `make_producer`'s caller says what it does
otherwise, and why. librdkafka logs every refused connection: what matters is raised or counted by callers, so its log
is off.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

import stamina
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from infra.settings import Settings
from pipelines.errors import StreambankError

__all__ = [
    "KafkaAccessError",
    "NoLogger",
    "jaas_config",
    "java_options",
    "kafka_options",
    "kafka_password",
    "make_producer",
    "password_provider",
    "python_options",
    "tls_context",
    "uses_sasl",
    "uses_tls",
    "watermarks",
]

CALL_SECONDS: Final = 15.0
_LEADER_IS_MOVING: Final = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)


_SHADED: Final = "org.apache.flink.kafka.shaded."
"""Where the Kafka client lies in Flink's connector, and so the classes that its options name."""


class KafkaAccessError(StreambankError):
    """What the settings say of how to reach Kafka does not fit together, or a file of it cannot be read."""


def uses_tls(settings: Settings) -> bool:
    return settings.kafka_security_protocol.endswith("SSL")


def uses_sasl(settings: Settings) -> bool:
    return settings.kafka_security_protocol.startswith("SASL")


def kafka_password(settings: Settings) -> str:
    """Of ``kafka_user``, under SASL. Raises `KafkaAccessError`."""
    path = _password_file(settings)
    try:
        password = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise KafkaAccessError(f"STREAMBANK_KAFKA_PASSWORD_FILE: {path} cannot be read: {error}") from error
    if not password or any(character in '"\\' or not character.isprintable() for character in password):
        raise KafkaAccessError(
            f"STREAMBANK_KAFKA_PASSWORD_FILE: {path} is empty, or holds a quote, a backslash or a line's end, which "
            "Java's clients would take for something else; write the password alone: printf %s ... > FILE"
        )
    return password


def _password_file(settings: Settings) -> Path:
    path = settings.kafka_password_file
    if path is None:
        raise KafkaAccessError(
            f"Kafka is spoken to by {settings.kafka_security_protocol}, but there is no password; name a file that "
            "holds it with STREAMBANK_KAFKA_PASSWORD_FILE"
        )
    return path.resolve()


def kafka_options(settings: Settings) -> dict[str, Any]:
    """Where the brokers are and how they are spoken to, for librdkafka. Raises `KafkaAccessError`."""
    options: dict[str, Any] = {"bootstrap.servers": settings.kafka_bootstrap}
    if settings.kafka_security_protocol != "PLAINTEXT":
        options["security.protocol"] = settings.kafka_security_protocol
    if uses_tls(settings):
        options |= _paths({
            "ssl.ca.location": settings.kafka_ca_file, "ssl.certificate.location": settings.kafka_certificate_file,
            "ssl.key.location": settings.kafka_certificate_file,
        })  # fmt: skip
    if uses_sasl(settings):
        options |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_user,
            "sasl.password": kafka_password(settings),
        }
    return options


def java_options(settings: Settings) -> dict[str, str]:
    """The same for the Java client inside Flink's connector, without the brokers. Raises `KafkaAccessError`."""
    options: dict[str, str] = {"security.protocol": settings.kafka_security_protocol}
    if uses_tls(settings):
        files = {"truststore": settings.kafka_ca_file, "keystore": settings.kafka_certificate_file}
        for store, path in _paths(files).items():
            options |= {f"ssl.{store}.type": "PEM", f"ssl.{store}.location": path}
    if uses_sasl(settings):
        options |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            **password_provider(_SHADED),
            "sasl.jaas.config": jaas_config(settings, _SHADED),
        }
    return options


def password_provider(shaded: str = "") -> dict[str, str]:
    """Options by which a Java client or broker reads files that `jaas_config` names; ``shaded`` is before its
    classes."""
    return {
        "config.providers": "directory",
        "config.providers.directory.class": f"{shaded}org.apache.kafka.common.config.provider.DirectoryConfigProvider",
    }


def jaas_config(settings: Settings, shaded: str = "", known: bool = False) -> str:
    """Who we are under SASL, as Java's login modules want it; ``known``: and that we may log in, which PLAIN asks of a
    broker. Raises `KafkaAccessError`."""
    kafka_password(settings)  # an error now, and not in a TaskManager
    path, user = _password_file(settings), settings.kafka_user
    secret = f'"${{directory:{path.parent}:{path.name}}}"'
    module = "plain.Plain" if settings.kafka_sasl_mechanism == "PLAIN" else "scram.Scram"
    return (
        f"{shaded}org.apache.kafka.common.security.{module}LoginModule required "
        f'username="{user}" password={secret}{f" user_{user}={secret}" if known else ""};'
    )


def python_options(settings: Settings) -> dict[str, Any]:
    """The same for kafka-python, brokers included. Raises `KafkaAccessError`."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap.split(","),
        "security_protocol": settings.kafka_security_protocol,
        "ssl_context": tls_context(settings),
    }
    if uses_sasl(settings):
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_user,
            "sasl_plain_password": kafka_password(settings),
        }
    return options


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """For clients written in Python; None where Kafka is spoken to without TLS. Raises `KafkaAccessError`."""
    if not uses_tls(settings):
        return None
    try:
        context = ssl.create_default_context(
            cafile=None if settings.kafka_ca_file is None else str(settings.kafka_ca_file)
        )
        if settings.kafka_certificate_file is not None:
            context.load_cert_chain(settings.kafka_certificate_file)
    except (OSError, ssl.SSLError) as error:
        raise KafkaAccessError(
            f"STREAMBANK_KAFKA_CA_FILE {settings.kafka_ca_file} or STREAMBANK_KAFKA_CERTIFICATE_FILE "
            f"{settings.kafka_certificate_file} cannot be used: {error}"
        ) from error
    return context


def _paths(files: dict[str, Path | None]) -> dict[str, str]:
    """Those that are set, as absolute paths."""
    return {name: str(path.resolve()) for name, path in files.items() if path is not None}


class NoLogger:
    """``logger`` of a client, where ``log_level`` 0 is not silent enough: what its callbacks say is left out too."""

    def log(self, level: int, *args: Any) -> None:
        pass


def make_producer(settings: Settings, client: str, delivery_seconds: float | None, **differences: Any) -> Any:
    """A producer named ``streambank-<client>``, idempotent and with acks=all, that sends at once.

    A record that is not acknowledged within ``delivery_seconds`` is reported as failed, though Kafka may hold it; None:
    never, a later one does not overtake it. ``differences`` are keys of librdkafka with underscores for dots.
    """
    return Producer(
        {
            **kafka_options(settings),
            "client.id": f"streambank-{client}",
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 0,
            "compression.type": "lz4",
            "message.max.bytes": 1_000_000,
            "delivery.timeout.ms": 0 if delivery_seconds is None else int(delivery_seconds * 1000),
            "log_level": 0,
            **{key.replace("_", "."): value for key, value in differences.items()},
        }
    )


def watermarks(consumer: Any, place: TopicPartition, timeout: float = CALL_SECONDS) -> tuple[int, int]:
    """First offset of a partition and the offset after its last record. Raises `KafkaException`.

    librdkafka does not ask again when it asked a broker that leads the partition no more, or not yet.
    """

    def is_moving(error: Exception) -> bool:
        return isinstance(error, KafkaException) and error.args[0].code() in _LEADER_IS_MOVING

    for attempt in stamina.retry_context(on=is_moving, attempts=None, timeout=timeout, wait_max=1.0):
        with attempt:
            bounds: tuple[int, int] = consumer.get_watermark_offsets(place, timeout=timeout, cached=False)
    return bounds
