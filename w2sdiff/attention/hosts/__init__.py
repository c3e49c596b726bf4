"""One file per transformer that can be compressed; see `base` for what each one says."""

from w2sdiff.attention.hosts.base import HOSTS, Call, Processor, host_of

__all__ = ["HOSTS", "Call", "Processor", "host_of"]
