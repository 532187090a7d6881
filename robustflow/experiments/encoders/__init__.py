"""Networks that turn an observation into the features that condition a flow."""

from robustflow.experiments.encoders.rrdb import RRDB, RRDBEncoder
from robustflow.experiments.encoders.tiny import TinyEncoder

__all__ = ["RRDB", "RRDBEncoder", "TinyEncoder"]
