"""Where everything is: one settings object for the stack, the api, the jobs and the CLI.

Every value can be set by an environment variable ``STREAMBANK_<NAME>`` (say ``STREAMBANK_KAFKA_PORT=19092``); the
CLI's flags read the same variables. The defaults are a local stack on loopback; servers that run elsewhere are named by
their addresses (docs/how-to/own-servers.md). No secret is a setting: passwords come from files or variables that are
read where they are needed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Unknown STREAMBANK_ variables are ignored; a wrong value is an error that names it."""

    model_config = SettingsConfigDict(env_prefix="STREAMBANK_", frozen=True)

    home: Path = Field(
        PROJECT_ROOT / ".streambank",
        description="Downloaded jars and the Flink overlay; shared by every stack of this clone.",
    )
    data_dir: Path = Field(PROJECT_ROOT / ".streambank" / "data", description="Data, logs and secrets of one stack.")
    host: str = Field(
        "127.0.0.1", description="Address that servers started here listen on, and where those are that have no other."
    )

    kafka_port: int = Field(9092, description="Kafka broker.")
    kafka_controller_port: int = Field(9093, description="Kafka KRaft controller.")
    registry_port: int = Field(8082, description="Schema registry.")
    flink_port: int = Field(8081, description="Flink REST API and web UI.")
    flink_rpc_port: int = Field(6123, description="Flink JobManager RPC.")
    postgres_port: int = Field(5433, description="Postgres.")
    postgres_replica_port: int = Field(5434, description="Streaming replica of Postgres.")
    cassandra_port: int = Field(9042, description="Cassandra native protocol.")
    cassandra_storage_port: int = Field(7000, description="Cassandra internode.")
    valkey_port: int = Field(6380, description="Valkey.")
    api_port: int = Field(8080, description="Streambank API.")
    faust_web_port: int = Field(6066, description="First of the ports of the sinks' health and metrics pages.")

    kafka_servers: str = Field("", description="Kafka brokers elsewhere: host:port, with commas between.")
    registry_address: str = Field(
        "", description="Schema registry elsewhere: the base URL of its Confluent-compatible API."
    )
    flink_address: str = Field("", description="Flink elsewhere: the base URL of its REST API.")
    postgres_host: str = Field("", description="Postgres elsewhere.")
    postgres_replica_host: str = Field("", description="Streaming replica of Postgres elsewhere.")
    cassandra_hosts: str = Field("", description="Cassandra elsewhere: some of its nodes, with commas between.")
    valkey_host: str = Field("", description="Valkey elsewhere.")

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How clients talk to Kafka, as Kafka names it; SSL is TLS."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How clients say who they are to Kafka under SASL."
    )
    kafka_user: str = Field("streambank", pattern=r"^[\w.@-]+$", description="Who clients are to Kafka under SASL.")
    kafka_password_file: Path | None = Field(
        None, description="File that holds that user's password and nothing else; TaskManagers read it too."
    )
    kafka_ca_file: Path | None = Field(None, description="PEM file of the authorities that may vouch for brokers.")
    kafka_certificate_file: Path | None = Field(
        None, description="PEM file of the client's certificate and, in PKCS 8, its key, where brokers ask for one."
    )
    cassandra_ca_file: Path | None = Field(
        None, description="PEM file of the authorities that may vouch for Cassandra; given, clients speak TLS."
    )
    valkey_ca_file: Path | None = Field(
        None, description="PEM file of the authorities that may vouch for Valkey; given, clients speak TLS."
    )

    jvm_options: str = Field(
        "",
        description="Options for the JVMs of Kafka, Flink and Cassandra, after their own: -XX:TieredStopAtLevel=1 "
        "-XX:+UseSerialGC for a stack that lives for minutes, say.",
    )
    topic_prefix: str = Field(
        "",
        description="Put before every topic and consumer group, so that several environments share a broker.",
    )
    consumer_session_seconds: float = Field(
        15.0,
        ge=6.0,
        le=60.0,
        description="After so long without a word the broker gives a dead sink's or notifier's partitions to another; "
        "brokers allow no less than 6.",
    )
    postgres_database: str = Field("streambank", description="Database of the projections.")
    postgres_user: str = Field("postgres", description="Role of the projections' owner.")
    valkey_database: int = Field(0, ge=0, le=63, description="Number of the Valkey database.")
    cassandra_keyspace: str = Field("streambank", description="Keyspace of the history.")
    mlflow_tracking_uri: str = Field(
        "", description="Database of MLflow, postgresql://... say; empty: a SQLite file in the home."
    )
    settlement_file: Path | None = Field(
        None, description="JSON file that says in which ledgers the instruments' trades are settled."
    )
    postgres_replica: bool = Field(
        False, description="Whether queries go to the streaming replica first, and to Postgres only where it is behind."
    )
    postgres_locking: Literal["optimistic", "pessimistic"] = Field(
        "optimistic", description="How writers that share accounts in Postgres keep out of each other's way."
    )

    card_master_keys: str = Field(
        "",
        description="package.module:factory of the key service that wraps the card vault's keys; empty: a file in the "
        "secrets directory.",
    )

    producer_keys_file: str = Field(
        "", description="Keys of producers that sign their records; empty: producer-keys.json of the secrets directory."
    )

    api_tls: Literal["off", "on", "mutual"] = Field(
        "off", description="Whether the API speaks TLS; mutual: clients must show a certificate."
    )
    webhook_allowed_networks: str = Field(
        "",
        description="Networks that webhooks may reach although they are not public, with commas between: 10.1.0.0/16.",
    )
    webhook_allow_http: bool = Field(False, description="Whether webhooks may be sent without TLS.")

    @property
    def kafka_bootstrap(self) -> str:
        return self.kafka_servers or f"{self.host}:{self.kafka_port}"

    def variables(self) -> dict[str, str]:
        """The environment variables from which another process reads the same settings; unset ones are left out."""
        return {
            f"STREAMBANK_{name.upper()}": str(value) for name, value in self.model_dump().items() if value is not None
        }

    def kafka_topic(self, topic: str) -> str:
        """The broker's name of a catalogue topic (or of a consumer group) in this environment."""
        return f"{self.topic_prefix}{topic}"

    @property
    def registry_url(self) -> str:
        """Base of the registry's Confluent-compatible API."""
        return self.registry_address.rstrip("/") or f"http://{self.host}:{self.registry_port}/apis/ccompat/v7"

    @property
    def flink_url(self) -> str:
        return self.flink_address.rstrip("/") or f"http://{self.host}:{self.flink_port}"

    @property
    def postgres_dsn(self) -> str:
        host = self.postgres_host or self.host
        return f"postgresql://{self.postgres_user}@{host}:{self.postgres_port}/{self.postgres_database}"

    @property
    def valkey_url(self) -> str:
        """Without a password; what connects is `infra.stores.valkey_conninfo`."""
        scheme = "redis" if self.valkey_ca_file is None else "rediss"
        return f"{scheme}://{self.valkey_host or self.host}:{self.valkey_port}/{self.valkey_database}"

    @property
    def api_url(self) -> str:
        return f"http{'' if self.api_tls == 'off' else 's'}://{self.host}:{self.api_port}"

    @property
    def mlflow_uri(self) -> str:
        return self.mlflow_tracking_uri or f"sqlite:///{self.home.resolve() / 'mlflow.db'}"

    @property
    def secrets_dir(self) -> Path:
        """Keys and client secrets made for the local stack; mode 0700, never in git."""
        return self.data_dir / "secrets"

    @property
    def producer_keys_path(self) -> Path:
        """The keys with which producers sign and jobs check."""
        return Path(self.producer_keys_file) if self.producer_keys_file else self.secrets_dir / "producer-keys.json"

    @property
    def tls_dir(self) -> Path:
        """Certificates that `streambank certs make` makes."""
        return self.secrets_dir / "tls"

    @property
    def spill_dir(self) -> Path:
        """Where a job keeps records that it seldom reads; files without a name, gone with their process."""
        return self.data_dir / "flink" / "spill"

    @property
    def checkpoints_dir(self) -> Path:
        return self.data_dir / "flink" / "checkpoints"

    @property
    def savepoints_dir(self) -> Path:
        return self.data_dir / "flink" / "savepoints"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
