"""Real Apache Kafka and real Redis as child processes, for a machine without Docker."""

from pipeline.local.kafka import LocalKafka
from pipeline.local.redis import LocalRedis

__all__ = ["LocalKafka", "LocalRedis"]
